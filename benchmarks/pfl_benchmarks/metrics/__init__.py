"""Metrics: what one prediction scores, between 0 and 1, and what all predictions of a task score together.

Each is a pure function of the predicted text and the sample, in a module of its own; `plugin.py` makes them reachable
by name: `choice`, `exact`, `token_f1`, `rouge_l`, `matthews`, `pearson-spearman`.
"""
