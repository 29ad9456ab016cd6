"""Codes for given directions: matching pursuit, OMP, FISTA, and least squares on a support."""
