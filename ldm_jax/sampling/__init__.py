"""Sampling: from a trained model to pictures."""
