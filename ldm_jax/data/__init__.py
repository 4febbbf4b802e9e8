"""Pictures with their captions and classes: where they come from, and how they become batches."""
