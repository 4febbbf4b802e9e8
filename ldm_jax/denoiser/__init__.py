"""Denoisers: raw networks from a noisy latent, a time and conditions to a prediction."""
