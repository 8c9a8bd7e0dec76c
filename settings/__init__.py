"""All settings of a run: the frozen, validated curriculum, and what of it changes with the step."""
