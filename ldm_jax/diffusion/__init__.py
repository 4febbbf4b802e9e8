"""The mathematics of diffusion: pure functions of arrays and of `denoise_fn(z_t, t) -> prediction`."""
