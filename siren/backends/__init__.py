"""The arithmetic of a folded SIREN, on CPUs and GPUs."""
