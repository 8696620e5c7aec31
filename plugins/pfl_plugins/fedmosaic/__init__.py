"""FedMosaic: relevance-guided aggregation (RELA) and dimension-invariant PQ-LoRA (ICLR 2026)."""
