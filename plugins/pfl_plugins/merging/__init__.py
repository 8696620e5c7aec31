"""What all merging methods share: the spaces they work in, flat thresholds, refactorising, the federated aggregator."""
