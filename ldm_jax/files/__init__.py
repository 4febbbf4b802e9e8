"""Files of other systems: tensors, JSON and folders, read safely and written whole."""
