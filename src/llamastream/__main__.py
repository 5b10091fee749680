"""`python -m llamastream`: the same as the `llamastream` command."""

from llamastream.cli.main import main

if __name__ == "__main__":
    main()
