"""QEMU: its command line, its confinement, its accelerators and its monitor."""
