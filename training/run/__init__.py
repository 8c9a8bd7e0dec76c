"""A run on disk: folder, checkpoints, log, and recovery."""
