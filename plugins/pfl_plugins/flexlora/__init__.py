"""FlexLoRA: exact mean of deltas, redistributed to each client's rank (Bai et al., 2402.11505)."""
