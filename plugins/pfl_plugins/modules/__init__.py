"""Whole modules as an adapter: their params are copied into a slot, and trained there. See README.md."""
