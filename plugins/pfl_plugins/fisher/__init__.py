"""Fisher merging (Matena and Raffel, 2111.09832)."""
