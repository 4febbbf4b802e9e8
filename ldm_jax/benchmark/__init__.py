"""Like for like beside PyTorch: the same work on the same numbers by both, in turn, timed only if the results agree."""
