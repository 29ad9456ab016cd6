"""python -m rayscope."""

from rayscope.cli.command_line import main

if __name__ == "__main__":
    main()
