"""Screening: which contributions of a round are believed.  One file per algorithm."""
