"""Holes in files: found by content, so that no file system's own grain shows."""

from __future__ import annotations

import errno
import os

__all__ = ["HOLE", "REGIONS_MAX", "data_regions"]

HOLE = 1 << 16  # the grain: coarser than any file system's
REGIONS_MAX = 1 << 18  # of one file: each takes a hundred bytes of memory


def data_regions(fd: int, size: int) -> list[tuple[int, int]] | None:
    """Finds the data of a file with holes, by content in grains of `HOLE`: (offset, length).

    The file system's own grain does not show, so that the same content gives the same map on any.
    Where there would be more than `REGIONS_MAX`, the grain is doubled. None if there are no holes.
    """
    zeros = bytes(HOLE)
    grain = HOLE
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
                _add(regions, at, length, grain, size)
                while len(regions) > REGIONS_MAX:
                    grain *= 2
                    finer, regions = regions, []
                    for region in finer:
                        _add(regions, *region, grain, size)
            at += length
    os.lseek(fd, 0, os.SEEK_SET)
    return None if regions == [(0, size)] else regions


def _add(regions: list[tuple[int, int]], at: int, length: int, grain: int, size: int) -> None:
    """Adds a region that ends behind all others, widened to whole grains."""
    end = min(at + length + -(at + length) % grain, size)
    at -= at % grain
    if regions and sum(regions[-1]) >= at:
        at = regions.pop()[0]
    regions.append((at, end - at))
