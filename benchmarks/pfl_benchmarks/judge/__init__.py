"""A judge that rates answers from 1 to 10: a model behind a server, recorded verdicts, or an offline stub. See
README.md."""
