"""Formats of the original code (latent-diffusion, Stable Diffusion, sgm): checkpoints with their project files."""
