"""What makes a model better."""
