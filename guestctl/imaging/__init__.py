"""The steps that make an image. Each is cached by what goes into it; guestctl.image puts them together."""
