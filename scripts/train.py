"""rayscope train, as a script."""

from rayscope.cli.command_line import main

if __name__ == "__main__":
    import sys

    main(["train", *sys.argv[1:]])
