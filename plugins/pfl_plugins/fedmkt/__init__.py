"""FedMKT: clients and server exchange what they predict on a public set (Fan et al., 2406.02224)."""
