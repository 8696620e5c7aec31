"""RegMean: merging linear maps by regression on their inputs (Jin et al., 2212.09849)."""
