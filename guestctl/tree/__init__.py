"""Virtfs trees on disk: written, read, listed, checked and repaired."""
