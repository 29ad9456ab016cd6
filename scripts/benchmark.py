"""rayscope benchmark, as a script."""

from rayscope.cli.command_line import main

if __name__ == "__main__":
    import sys

    main(["benchmark", *sys.argv[1:]])
