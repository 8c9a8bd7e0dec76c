"""Browser viewer that renders with PyTorch (view.py)."""
