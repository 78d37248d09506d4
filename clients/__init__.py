"""The data side: hold examples, train, report."""
