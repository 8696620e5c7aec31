"""Evaluates the server's reply instead of the client's own model."""
