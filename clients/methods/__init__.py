"""What happens during local training: one file per method, each a set of hooks."""
