"""A command as the agent is to start it: what a caller says, and what is usual in a guest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from guestctl.spec import Command

__all__ = ["PATH", "WINDOW", "Text", "invocation"]

PATH = "/usr/lib/guestctl/static:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In a sysroot its own tools come first; /tools lends what it lacks.
_PATH_IN_ROOT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/tools/bin"
_TERM = "xterm-256color"
# Rows and columns of a terminal of which nobody has said the size.
WINDOW = (24, 80)

Text = str | bytes


def invocation(
    argv: Sequence[Text],
    *,
    root: Text | None,
    cwd: Text,
    env: Mapping[str, Text] | None,
    user: tuple[int, int],
    umask: int,
    limits: Mapping[int, tuple[int, int]] | None,
    window: tuple[int, int] | None,
    path: Callable[[str], Text] = lambda usual: usual,
) -> Command:
    """The command; `path` may change what its PATH would be.

    Nothing of the host's environment is in it: PATH, HOME and LANG, TERM with a terminal, and
    `env`.
    """
    variables: dict[str, Text] = {
        "PATH": PATH if root is None else _PATH_IN_ROOT,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        **({"TERM": _TERM} if window else {}),
        **(env or {}),
    }
    variables["PATH"] = path(os.fsdecode(variables["PATH"]))
    return Command(
        argv=tuple(os.fsencode(arg) for arg in argv),
        env=tuple(
            os.fsencode(name) + b"=" + os.fsencode(value) for name, value in variables.items()
        ),
        cwd=os.fsencode(cwd),
        root=None if root is None else os.fsencode(root),
        uid=user[0],
        gid=user[1],
        umask=umask,
        limits=dict(limits or {}),
        window=window,
    )
