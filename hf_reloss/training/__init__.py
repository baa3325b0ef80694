"""Trainers that train on a surrogate of the metric."""
