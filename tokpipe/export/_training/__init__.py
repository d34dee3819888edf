"""What rows of training sets are made of."""
