"""Where things lie on the host: the one module that reads the XDG variables."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import HostLacks

__all__ = ["Places", "private_directory"]

_APP = "guestctl"
_TMP = "/tmp"


@dataclass(frozen=True)
class Places:
    """The folders of one user."""

    cache: Path
    runtime: Path
    config: Path
    data: Path

    @classmethod
    def of_user(cls) -> Places:
        """Those of the caller; raises HostLacks where another user holds the run directory."""
        # Supervisors need this module, but not that one.
        import platformdirs

        return cls(
            cache=Path(platformdirs.user_cache_dir(_APP)),
            runtime=_runtime(),
            config=Path(platformdirs.user_config_dir(_APP)),
            data=Path(platformdirs.user_data_dir(_APP)),
        )


def _runtime() -> Path:
    """`$XDG_RUNTIME_DIR/guestctl`, or a 0700 folder of the user's own under /tmp."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base and os.access(base, os.W_OK | os.X_OK):
        return private_directory(Path(base) / _APP)
    return private_directory(Path(f"{_TMP}/{_APP}-{os.getuid()}"))


def private_directory(path: Path) -> Path:
    """Makes `path` a directory with mode 0700, or checks that it is one and the caller's.

    Another local user may have made it first, or put a link in its place: then HostLacks is raised.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise HostLacks(f"cannot make the run directory {path}: {error.strerror}") from None
    facts = path.lstat()
    ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
    if not ours or facts.st_mode & 0o077:
        raise HostLacks(
            f"{path} is not a private directory of this user",
            hint="remove it, or set XDG_RUNTIME_DIR to a folder with mode 0700",
        )
    return path
