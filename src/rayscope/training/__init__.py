"""Training of dictionaries: the Lightning trainer, fine-tuning, checkpoints, logs."""
