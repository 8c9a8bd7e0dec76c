"""Training: losses, the D and G steps, moving averages, evaluation during a run, and the training loop."""
