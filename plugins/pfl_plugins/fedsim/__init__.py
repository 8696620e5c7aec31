"""FedSim: shared and personal adapter trained at once (Pillutla et al., 2204.03809)."""
