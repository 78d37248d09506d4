"""When a round trains on memories alone, and which groups it trains."""
