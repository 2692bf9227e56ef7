"""Run the command line as `python -m hwnas.cli`."""

from hwnas.cli.main import main

if __name__ == "__main__":
    main()
