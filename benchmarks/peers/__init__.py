"""The same small job on other systems, each with code of our own against its public API."""
