"""PerAda: personal adapters near a global one that is distilled on the server (Xie et al., 2302.06637)."""
