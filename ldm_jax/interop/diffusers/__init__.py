"""Formats of diffusers: autoencoders, U-Nets, schedulers and whole pipelines."""
