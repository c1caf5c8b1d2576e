"""What a run's records say about it."""
