"""Shared helpers: one-line errors, command-line arguments, atomic file writes."""
