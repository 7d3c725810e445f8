"""The steps that make an image, each cached by what goes into it."""
