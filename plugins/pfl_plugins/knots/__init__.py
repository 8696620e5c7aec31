"""KnOTS: merging in the coordinates of one orthonormal basis (Stoica et al., 2410.19735)."""
