"""Procedural heads, the built-in data with known geometry: parameters -> sdf -> shading -> render."""
