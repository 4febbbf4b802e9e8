"""The `ldm latents` command: data sets through an autoencoder once, looked at, and checked."""
