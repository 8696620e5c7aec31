"""GLUE: eight tasks of language understanding, one per client, read from the official TSV files. See README.md."""
