"""guestctl."""
