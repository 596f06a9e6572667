"""The paper's tables and figures: which runs make one, running them, and what came out."""
