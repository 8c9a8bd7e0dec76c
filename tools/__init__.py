"""Commands that are needed less often. Run them as python -m tools.NAME."""
