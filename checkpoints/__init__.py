"""Generators and runs in files: ours and the published ones, read as tensors and plain containers."""
