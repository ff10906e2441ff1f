"""`python -m d4lens ...` is `d4lens ...`."""

import sys

from d4lens.cli import main

if __name__ == "__main__":
    sys.exit(main())
