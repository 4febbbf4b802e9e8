"""Formats of others: configurations and parameters of diffusers, transformers and CompVis, both ways."""
