"""Weighted means and task arithmetic (Ilharco et al., 2212.04089)."""
