"""rayscope sites, as a script."""

from rayscope.cli.command_line import main

if __name__ == "__main__":
    import sys

    main(["sites", *sys.argv[1:]])
