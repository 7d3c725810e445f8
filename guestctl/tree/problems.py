"""What can be wrong with a tree: the kinds, and what each does to a guest or a build. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass

from guestctl.errors import one_line

__all__ = ["KINDS", "Problem"]

# What each kind of problem does to a guest or a build.
KINDS = {
    "partial-stage": "a stage into it did not end: entries are missing or cut short",
    "dirty": "its guest died with it mounted: files in it may be missing or cut short",
    "mixed": "it holds metadata of both security models: a guest believes only one",
    "missing": "the guest sees the host's owner and mode; rename and link from here can fail, "
    "or destroy what they would replace",
    "partial": "the guest sees the host's values where the metadata has none",
    "malformed": "it is not what QEMU writes: the guest may see other values than were meant",
    "no-type": "stat fails in the guest with EINVAL",
    "wrong-type": "the guest believes the metadata: what it does with the entry fails or destroys",
    "orphan": "the guest can never remove the directory",
    "empty-metadata": "the guest cannot rename another directory over this empty one",
    "unsafe-metadata": "the metadata is no small regular file: QEMU takes it as missing, or hangs",
    "unshared-links": "the names of one file differ in owner and mode, or will after a chmod",
    "shared-metadata": "it is another entry's too: a guest's chmod or chown of one changes both",
    "host-symlink": "the guest sees a link that it cannot read (ELOOP)",
    "host-special": "the guest cannot open it",
    "host-mode": "the guest's root is refused what root may do",
    "bad-target": "the guest sees a link with an empty or impossible target",
    "content": "a device, fifo or socket with content, which the guest cannot see",
    "stray": "a reserved name where it has no meaning: the guest can never remove the directory",
}


@dataclass(frozen=True, slots=True)
class Problem:
    path: bytes
    kind: str
    detail: str = ""
    mended: bool = False

    @property
    def consequence(self) -> str:
        return KINDS[self.kind]

    @property
    def line(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        done = "; mended" if self.mended else ""
        path = os.fsdecode(self.path) or "."
        return one_line(f"{path}: {self.kind}{detail}: {self.consequence}{done}")
