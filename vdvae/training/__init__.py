"""One training step and what it keeps: gradient, optimiser, EMA, metrics."""
