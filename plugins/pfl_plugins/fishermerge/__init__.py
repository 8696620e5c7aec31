"""Fisher merging of the federated and the local model of each client (2111.09832)."""
