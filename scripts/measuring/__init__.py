"""How fast training, sampling, evaluation and the loader are, and what memory a step takes."""
