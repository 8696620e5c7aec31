"""Nash bargaining among clients (after Nash-MTL, 2202.01017)."""
