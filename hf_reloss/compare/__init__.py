"""Comparing losses: paired runs with the same seeds, stored, resumed and reported with intervals."""
