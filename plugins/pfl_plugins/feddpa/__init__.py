"""FedDPA: a global and a local adapter, weighed for each question (Yang et al., 2403.19211)."""
