"""Evaluation of a folded SIREN on CPUs and GPUs."""
