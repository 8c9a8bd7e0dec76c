"""Cameras, samplers, root finding, volume rendering, and the single render path that combines them."""
