"""How good a model is: feature networks, scores over them, and the command that computes them."""
