"""rayscope study, as a script."""

from rayscope.cli.command_line import main

if __name__ == "__main__":
    import sys

    main(["study", *sys.argv[1:]])
