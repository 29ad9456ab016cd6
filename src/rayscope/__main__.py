"""python -m rayscope."""

from rayscope.cli import main

if __name__ == "__main__":
    main()
