"""From views to files that one looks at: images, videos, meshes."""
