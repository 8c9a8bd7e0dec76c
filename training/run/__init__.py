"""A run on disk: its folder, its checkpoints, its log, and what to do when something goes wrong."""
