"""rayscope evaluate, as a script."""

from rayscope.cli.command_line import main

if __name__ == "__main__":
    import sys

    main(["evaluate", *sys.argv[1:]])
