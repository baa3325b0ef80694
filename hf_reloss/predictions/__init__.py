"""What models put out, recorded with their labels, and drawn into groups that a metric scores."""
