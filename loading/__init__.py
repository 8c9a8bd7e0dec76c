"""From image files to batches: files -> cache -> batches."""
