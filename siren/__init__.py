"""The field: z -> FiLM parameters -> occupancy logits, colors and normals at arbitrary points.

Reading order: mapping.py (z to FiLM parameters), siren.py (the weights), field.py (the field of given latents).
"""
