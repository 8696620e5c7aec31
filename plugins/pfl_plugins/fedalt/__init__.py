"""FedALT: a rest-of-the-world adapter and a mixer at every client (Bian et al., 2503.11880). Not FedAlt of 2022."""
