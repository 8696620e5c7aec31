"""FedDAT: a dual-adapter teacher and mutual distillation (Chen et al., 2308.12305)."""
