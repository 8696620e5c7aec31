"""FedAlt of 2204.03809: the personal part first, then the shared one. Not FedALT of 2503.11880, which is `fedalt`."""
