"""Cross compilers on the host, and how one of them stands for the guest's own compiler.

Layer 2. `install` unpacks Debian's cross compiler into the user's cache; `examine` says which
compiler a guest's program is; `pair` finds the toolchain that makes the same bytes; `translate`
turns the guest's call into the host's, or refuses it. Nothing here runs a compiler.

Still to come under these names:
    install(arch, *, cache_dir, mirror=(), progress=...) -> Toolchain
    installed(arch=None, *, cache_dir) -> list[Toolchain]           the newest first
    examine(files: GuestFiles, program: bytes) -> GuestCompiler     raises ToolchainError
    pair(guest: GuestCompiler, toolchains) -> Pairing | Mismatch
    check_object(data: bytes, target) -> str                        "" or what is wrong
    guestctl.image.root_folder(image) -> Path                       its root with real links
"""

from guestctl.toolchain.facts import Fingerprint, GuestCompiler, Mismatch, Pairing, Toolchain
from guestctl.toolchain.files import FolderFiles, GuestFiles
from guestctl.toolchain.translate import Command, Refusal

__all__ = [
    "Command",
    "Fingerprint",
    "FolderFiles",
    "GuestCompiler",
    "GuestFiles",
    "Mismatch",
    "Pairing",
    "Refusal",
    "Toolchain",
]
