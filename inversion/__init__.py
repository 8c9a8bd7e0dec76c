"""Inversion of a photo: search for its latent and camera, tuning of the generator, and output files."""
