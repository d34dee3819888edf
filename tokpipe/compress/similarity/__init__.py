"""Reducers that merge or prune what resembles something else."""
