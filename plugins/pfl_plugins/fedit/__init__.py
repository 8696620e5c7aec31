"""FedIT: federated averaging of LoRA's A and B (Zhang et al., 2305.05644)."""
