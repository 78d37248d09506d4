"""AirLLM: a learnt controller of ranks."""
