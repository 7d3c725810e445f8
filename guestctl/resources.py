"""Where the data files are: recipes, locks, kernel symbol lists, sources of guest-init, host-view.

In a checkout they lie beside the package, in an installed wheel in `guestctl/data`.
"""

from __future__ import annotations

from pathlib import Path

from guestctl.errors import HostLacks

__all__ = ["guest_init", "host_view", "images"]

_PACKAGE = Path(__file__).resolve().parent


def images() -> Path:
    """Returns the folder of recipes, locks and kernel symbol lists."""
    return _find("images")


def guest_init() -> Path:
    """Returns the folder of guest-init's sources. It may be read-only."""
    return _find("guest-init")


def host_view() -> Path:
    """Returns the folder of the view worker's sources. It may be read-only."""
    return _find("host-view")


def _find(name: str) -> Path:
    for folder in (_PACKAGE / "data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise HostLacks(f"this installation of guestctl has no {name} folder", hint="install it again")
