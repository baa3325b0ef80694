"""Surrogates: networks from a model's outputs and labels to a loss. One file per kind of evidence."""
