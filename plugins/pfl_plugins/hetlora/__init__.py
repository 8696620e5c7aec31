"""HETLoRA: clients of different ranks, self-pruning and aggregation by norm (Cho et al., 2401.06432)."""
