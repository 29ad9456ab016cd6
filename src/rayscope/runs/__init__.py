"""A run's folder: what is in it, who works in it, how it is resumed and replaced."""
