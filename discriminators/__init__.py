"""The discriminator: a progressive backbone with heads for realness, latent and pose."""
