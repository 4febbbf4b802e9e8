"""Parity cases: what another system computed, computed here and compared."""
