"""EMR-Merging: elect, mask and rescale (Huang et al., 2405.17461)."""
