"""Fed-ET: a large server model from an ensemble of small, unlike client models (Cho et al., 2204.12703)."""
