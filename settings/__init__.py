"""All settings of a run: the frozen, validated curriculum, and the schedules that depend on the step."""
