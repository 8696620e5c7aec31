"""FFA-LoRA: A is frozen and the same everywhere, so that averaging B is exact (Sun et al., 2403.12313)."""
