"""Batches of activations: harvested from a model, or made with a known truth."""
