"""Several processes: joining, collectives, lost peers, and sharding of work."""
