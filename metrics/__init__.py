"""Metrics of a generator's images (registry.py), surfaces (weighted_variance.py) and shapes (shapes.py).

To add an image metric, write a function that takes an :class:`metrics.registry.Evaluation` and add it to
:data:`metrics.registry.METRICS`. ``eval_metrics.py --metrics NAME`` then accepts it.
"""
