"""Formats of transformers: text and image encoders, and tokenizers."""
