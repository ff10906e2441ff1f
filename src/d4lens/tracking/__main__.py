"""`python -m d4lens.tracking` opens the UI."""

from d4lens.tracking.ui import main

if __name__ == "__main__":
    main()
