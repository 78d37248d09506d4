"""Smaller tensors on the wire."""
