"""Questions to a fit: decode, generate, compare, encode; each reads what it needs and calls the core."""
