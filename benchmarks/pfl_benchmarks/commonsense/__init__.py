"""Commonsense reasoning: the eight tasks of LLM-Adapters, one per client, read from their files. See README.md."""
