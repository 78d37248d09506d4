"""What sets the classifier: gradients, or sums over examples."""
