"""Learning a surrogate from recorded predictions."""
