"""The command line: composed by Hydra, checked, run."""

from rayscope.cli.command_line import main

__all__ = ["main"]
