"""`python -m guestctl`."""

from guestctl.cli.main import main

if __name__ == "__main__":
    main()
