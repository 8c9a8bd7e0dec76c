"""A photo in 3D: the latent and the camera behind a photo, the generator tuned to it, and what is written about it."""
