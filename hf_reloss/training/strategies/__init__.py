"""Ways to train: each a strategy, a file of its own, which says what the loss is and what becomes of it in a run."""
