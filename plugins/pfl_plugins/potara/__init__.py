"""Potara: the federated and the local model of each client, merged by closed-form weights (2602.18658)."""
