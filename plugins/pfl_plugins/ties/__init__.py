"""TIES-Merging (Yadav et al., 2306.01708)."""
