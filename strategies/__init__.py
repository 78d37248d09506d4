"""Decisions and vocabulary, imported by the server and the clients; imports neither."""
