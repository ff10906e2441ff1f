"""`python -m d4lens.track` opens the UI."""

from d4lens.track.ui import main

if __name__ == "__main__":
    main()
