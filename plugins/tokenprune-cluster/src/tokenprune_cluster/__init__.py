"""Executors of tokenprune for clusters: Ray, and Slurm through submitit."""
