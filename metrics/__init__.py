"""How good a generator is: of its images (registry.py), its surfaces (weighted_variance.py) and its shapes (shapes.py).

To add an image metric, write one function of an :class:`metrics.registry.Evaluation` and give it an entry in
:data:`metrics.registry.METRICS`; ``eval_metrics.py --metrics NAME`` then knows it.
"""
