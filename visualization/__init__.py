"""Visualization: write views as images, videos and meshes."""
