"""Updates of different shape into one global state."""
