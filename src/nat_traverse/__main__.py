"""`python -m nat_traverse` is `nat-traverse`."""

import sys

from nat_traverse.cli import main

if __name__ == "__main__":
    sys.exit(main())
