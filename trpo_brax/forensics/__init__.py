"""What went wrong, and when: iterations replayed, runs compared."""
