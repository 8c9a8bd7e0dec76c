"""Discriminators: a backbone with outputs for realness, pose and latent."""
