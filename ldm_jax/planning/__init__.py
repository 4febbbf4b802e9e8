"""Plans: the real step compiled for accelerators that nobody owns yet, and what its compiler says of it."""
