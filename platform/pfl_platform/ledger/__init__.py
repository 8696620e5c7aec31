"""Bytes, FLOPs, seconds and memory: measured, beside the formula."""
