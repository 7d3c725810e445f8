"""Archives: every dialect that is read, the one that is written, and host folders as such."""
