"""A run on disk: its directory and lock, checkpoints, log, progress, and what ends it early."""
