"""Dictionaries compared at equal bits: the comparison, its measurement, the metrics."""
