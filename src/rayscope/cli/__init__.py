"""The command line: composed by Hydra, checked, run."""
