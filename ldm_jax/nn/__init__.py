"""Blocks that the autoencoder, the denoiser and the encoders share."""
