"""From picture files to batches: files -> cache -> batches."""
