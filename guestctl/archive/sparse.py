"""Holes in files: found by content, so that no file system's own grain shows."""

from __future__ import annotations

import errno
import os

__all__ = ["HOLE", "data_regions"]

HOLE = 1 << 16  # the grain: coarser than any file system's


def data_regions(fd: int, size: int) -> list[tuple[int, int]] | None:
    """Finds the data of a file with holes, by content in grains of `HOLE`: (offset, length).

    The file system's own grain does not show, so that the same content gives the same map on any.
    None if there are no holes.
    """
    zeros = bytes(HOLE)
    regions: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            found = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = min(os.lseek(fd, found, os.SEEK_HOLE), size)
        at = max(found - found % HOLE, at)
        while at < end:
            length = min(HOLE, size - at)
            data = os.pread(fd, length, at)
            if len(data) != length:
                raise OSError(errno.EIO, "the file changes while it is read")
            if data != zeros[:length]:
                if regions and sum(regions[-1]) == at:
                    regions[-1] = (regions[-1][0], regions[-1][1] + length)
                else:
                    regions.append((at, length))
            at += length
    os.lseek(fd, 0, os.SEEK_SET)
    return None if regions == [(0, size)] else regions
