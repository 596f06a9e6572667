"""Data sets on disk, and the batch of every step."""
