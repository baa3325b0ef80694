"""Losses: networks from evidence to a number. They know no model, no file and no trainer."""
