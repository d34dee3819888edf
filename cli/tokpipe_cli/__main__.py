"""``python -m tokpipe_cli``."""

from tokpipe_cli.app import main

if __name__ == "__main__":
    main()
