"""Cross compilers on the host, and how one of them stands for the guest's own compiler.

Layer 3. `install` unpacks Debian's cross compiler into the user's cache and fits it to the guest's
native one; `pair` says whether a program of a guest is that one; `translate` turns the guest's
call into the host's, or refuses it.
"""

from guestctl.toolchain.elf import check_object
from guestctl.toolchain.facts import Mismatch, Pairing, Program, Toolchain
from guestctl.toolchain.files import GuestFiles
from guestctl.toolchain.install import find, install, installed, lock, recipe
from guestctl.toolchain.pair import bare, identify, pair
from guestctl.toolchain.translate import ENVIRONMENT, Command, Refusal, doubt, translate

__all__ = [
    "ENVIRONMENT",
    "Command",
    "GuestFiles",
    "Mismatch",
    "Pairing",
    "Program",
    "Refusal",
    "Toolchain",
    "bare",
    "check_object",
    "doubt",
    "find",
    "identify",
    "install",
    "installed",
    "lock",
    "pair",
    "recipe",
    "translate",
]
