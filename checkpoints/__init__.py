"""Checkpoint files, ours and the published ones, read as tensors and plain containers."""
