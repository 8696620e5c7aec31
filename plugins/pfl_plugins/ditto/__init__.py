"""Ditto: a personal adapter near the global one (Li, Hu, Beirami and Smith, 2012.04221)."""
