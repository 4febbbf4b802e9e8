"""Other systems' model formats, read and written."""
