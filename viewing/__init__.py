"""A viewer in the browser that renders with PyTorch (view.py)."""
