"""A confined view of a guest's file system for tools of the host.

    with View({"work": Tree(share, "mapped-file"), "root": Tree(root, fixed=True)}, toolchain,
              cache_dir=places.cache) as view:
        outcome = view.call(Call(program=b"/.tc/usr/bin/gcc", argv=(b"gcc", b"-c", b"a.c"),
                                 environment={}, cwd=b"/work",
                                 mounts=(Mount("root", b"", b"/"), Mount("work", b"", b"/work"))))

Tools see the guest's files at the guest's paths, symbolic links included, and none of the host's;
nothing but the toolchain is executable. What they write stays in memory and is handed back.
"""

from __future__ import annotations

from guestctl.view.calls import (
    TOOLCHAIN,
    Bind,
    Call,
    Given,
    Limits,
    Mount,
    Outcome,
    Tree,
    Written,
)
from guestctl.view.view import View, why_no_view

__all__ = [
    "TOOLCHAIN",
    "Bind",
    "Call",
    "Given",
    "Limits",
    "Mount",
    "Outcome",
    "Tree",
    "View",
    "Written",
    "why_no_view",
]
