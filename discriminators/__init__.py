"""Discriminators: a backbone with read-outs for realness, pose and latent."""
