"""Tasks on pictures that any model can do: they decide where sampling starts, and what of a latent is known."""
