"""DARE: drop and rescale (Yu et al., 2311.03099)."""
