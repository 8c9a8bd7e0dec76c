"""Cameras, samplers, root finding, volume rendering, and the one render path that joins them."""
