"""A run on disk: its folder, records, checkpoints and policies."""
