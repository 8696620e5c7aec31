"""Orthogonal subspaces before fine-tuning, for adapters that will be merged (OSRM, Zhang and Zhou, 2505.22934)."""
