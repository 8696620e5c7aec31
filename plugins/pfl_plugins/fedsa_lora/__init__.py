"""FedSA-LoRA: A is shared, B stays at the client (Guo et al., 2410.01463)."""
