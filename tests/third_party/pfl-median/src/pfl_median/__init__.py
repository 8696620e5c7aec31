"""Coordinate-wise median and trimmed mean for pfl-platform."""
