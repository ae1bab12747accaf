"""`python -m gpujobs`, and the `gpujobs` command."""

import sys

from gpujobs.cli.entry import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
