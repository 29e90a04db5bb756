"""`python -m dynpool`: the `dynpool` command, where that is not on PATH."""

from .cli import main

if __name__ == "__main__":
    main()
