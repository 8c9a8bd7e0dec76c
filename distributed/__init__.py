"""One process of several: joining, losing peers, agreeing, sharing work."""
