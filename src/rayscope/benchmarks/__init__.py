"""Ours and the peers' on one machine, by turns: what `rayscope benchmark` runs."""
