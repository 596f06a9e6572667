"""One training step and everything it keeps: optimiser, EMA, metrics, checkpoints."""
