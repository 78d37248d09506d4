"""The server side: when, who, remember.  Loads no model and needs no torch."""
