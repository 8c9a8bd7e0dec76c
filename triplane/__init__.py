"""Occupancy on tri-planes: z -> styles -> three feature planes -> logits and colors at arbitrary points.

Reading order: mapping.py (z to styles), backbone.py (styles to planes; modulation.py between its convolutions), decoder.py
(features of a point to logit and color), plain_lookup.py (planes and decoder at points; lookup.py chooses among this, C and
Triton), network.py (the weights), field.py (the field of given latents), growth.py (finer planes for a trained generator).
docs/method.md has the equations.
"""
