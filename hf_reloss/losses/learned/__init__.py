"""Networks of which something is learned: each the soft form of its metric, or one that was published."""
