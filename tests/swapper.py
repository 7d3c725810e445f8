"""Swaps pairs of entries of a folder for each other, again and again, until it is killed.

    python tests/swapper.py ONE OTHER [ONE OTHER ...]

Each swap is atomic (renameat2 with RENAME_EXCHANGE), so that both names always exist.
"""

from __future__ import annotations

import ctypes
import os
import sys

_AT_FDCWD = -100
_EXCHANGE = 2


def main() -> None:
    swap = ctypes.CDLL(None, use_errno=True).renameat2
    names = [os.fsencode(name) for name in sys.argv[1:]]
    pairs = list(zip(names[::2], names[1::2], strict=True))
    sys.stdout.write("swapping\n")
    sys.stdout.flush()
    while True:
        for one, other in pairs:
            # One of them may have been removed or replaced: the next turn may find it again.
            swap(_AT_FDCWD, one, _AT_FDCWD, other, _EXCHANGE)


if __name__ == "__main__":
    main()
