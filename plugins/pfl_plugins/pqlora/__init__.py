"""PQ-LoRA (FedMosaic, ICLR 2026): an adapter type, and a peft tuner in `pfl_plugins.pqlora.tuner`."""
