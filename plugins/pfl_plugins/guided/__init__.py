"""Guided clients ("From Aggregation to Guidance")."""
