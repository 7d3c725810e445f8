"""Debian packages of any architecture, fetched by apt as an ordinary user."""

from guestctl.packages.archive import SOURCE, Archive, PackageGone, sha256_of

__all__ = ["SOURCE", "Archive", "PackageGone", "sha256_of"]
