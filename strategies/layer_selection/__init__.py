"""Which groups each client trains."""
