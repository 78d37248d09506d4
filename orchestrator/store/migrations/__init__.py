"""The only source of the database schema."""
