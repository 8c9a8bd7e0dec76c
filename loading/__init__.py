"""Data loading: image files -> decoded cache -> batches."""
