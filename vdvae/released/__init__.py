"""The released weights and runs: where they are, whose they are, and the way in and out."""
