"""Runs side by side on one page: curves, scores, pictures, and what was different about them."""
