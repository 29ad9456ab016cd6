"""Dictionaries that are trained: one file per kind."""
