"""Which toolchain stands for a program of a guest: all of its parts must be those fitted to.

What counts is what the guest's own program would use: the driver's cc1, cc1plus, collect2, as and
ld, each looked up as the driver does (gcc.cc, collect2.cc).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from guestctl.toolchain.elf import ElfError
from guestctl.toolchain.facts import Mismatch, Pairing, Program, Toolchain
from guestctl.toolchain.files import GuestFiles
from guestctl.toolchain.fitting import texts_of
from guestctl.toolchain.identity import identity_of
from guestctl.toolchain.options import DRIVERS

__all__ = ["Identify", "bare", "identify", "pair"]

_OF_THE_DRIVER = ("cc1", "cc1plus", "collect2", "lto-wrapper", "liblto_plugin.so")
_SEARCHED = ("as", "ld")  # in the compiler's folders, then in PATH
_PREFERRED = ("specs", "real-ld", "collect-ld")  # what would come before what we know
_OTHERS = ("lto1", "nm", "gnm", "strip", "gstrip")  # what collect2 looks for besides
# Folders of headers whose real names are compiled into the toolchain.
_HEADERS = (
    "{prefix}/include/c++/{major}",
    "{prefix}/include/{triplet}/c++/{major}",
    "{base}/{triplet}/{major}/include",
    "/usr/local/include",
    "/usr/include/{triplet}",
    "/usr/include",
)

# Returns a file's identity; raises OSError or ElfError. Callers may keep what it found.
Identify = Callable[[GuestFiles, bytes], str]


def identify(files: GuestFiles, path: bytes) -> str:
    """The identity of a program of the guest."""
    with files.open(path) as file:
        return identity_of(file.read())


def pair(
    files: GuestFiles,
    program: bytes,
    path: Sequence[bytes],
    toolchains: Sequence[Toolchain],
    identity: Identify = identify,
) -> Pairing | Mismatch:
    """Finds the toolchain that stands for `program`, an absolute path in the guest.

    `path` are the folders of the guest's PATH but for the stub's. `identity` may remember what it
    computed: a compiler has 50 MB of parts. Never raises for what a guest holds.
    """
    try:
        real = files.realpath(program)
        found = identity(files, real)
    except (OSError, ElfError) as error:
        return Mismatch(_shown(program), _why(error), "programs of Debian's gcc and binutils")
    for toolchain in toolchains:
        for own in toolchain.programs:
            if own.identity == found and real.endswith(b"/" + own.path.encode()):
                prefix = real[: -len(own.path) - 1].decode(errors="replace")
                return _Pairer(files, toolchain, prefix, path, identity).pair(real, own)
    return _unknown(files, real, found, toolchains)


def bare(files: GuestFiles, folder: bytes, triplet: str) -> bool:
    """Whether no part of a compiler is in a folder that a call would have searched before the
    compiler's own (-B): then nothing but headers and what is linked can come from there.
    """
    names = (*_OF_THE_DRIVER, *_SEARCHED, *_PREFERRED, *_OTHERS, triplet)
    try:
        return not files.holds(folder, [name.encode() for name in names])
    except OSError:
        return False


def _shown(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _unknown(
    files: GuestFiles, real: bytes, found: str, toolchains: Sequence[Toolchain]
) -> Mismatch:
    """Says as well as may be what is different about a program that no toolchain stands for."""
    known = " or ".join(dict.fromkeys(f"gcc {t.version}" for t in toolchains)) or "no toolchain"
    with files.open(real) as file:
        data = file.read()
    try:
        package, configure = (text.decode(errors="replace") for text in texts_of(data))
    except ElfError:
        return Mismatch(_shown(real), f"a program of identity {found[:12]}", known)
    for toolchain in toolchains:
        if toolchain.version.endswith(package.strip()) and toolchain.configure != configure:
            return Mismatch("configure", configure, toolchain.configure)
    return Mismatch(_shown(real), f"gcc {package.strip()} of identity {found[:12]}", known)


class _Differs(Exception):
    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(str(mismatch))
        self.mismatch = mismatch


class _Pairer:
    """One program, whose toolchain is known already by its identity."""

    def __init__(
        self,
        files: GuestFiles,
        toolchain: Toolchain,
        prefix: str,
        path: Sequence[bytes],
        identity: Identify,
    ) -> None:
        self.files, self.toolchain, self.prefix = files, toolchain, prefix
        self.path, self.identity = path, identity
        self.programs = {program.role: program for program in toolchain.programs}
        self.binds: dict[bytes, bytes] = {}
        self.seen: list[bytes] = []

    def pair(self, real: bytes, own: Program) -> Pairing | Mismatch:
        if self.prefix not in self.toolchain.prefixes:
            known = ", ".join(self.toolchain.prefixes)
            return Mismatch("prefix", self.prefix, known)
        self.seen.append(real)
        self.bind(real, own)
        try:
            if own.role in DRIVERS:
                self.driver()
        except _Differs as error:
            return error.mismatch
        binds = tuple((source, at) for at, source in self.binds.items())
        return Pairing(
            self.toolchain, own.role, real, self.prefix, binds, tuple(dict.fromkeys(self.seen))
        )

    def driver(self) -> None:
        for role in _OF_THE_DRIVER:
            own = self.programs[role]
            self.part(own, f"{self.prefix}/{own.path}".encode())
        for role in _SEARCHED:
            own = self.programs[role]
            for candidate in self.candidates(role):
                if self.part(own, candidate):
                    break
        for folder in self.folders():
            for name in _PREFERRED:
                self.absent(f"{folder}/{name}")
        if self.toolchain.moved:
            self.headers()

    def absent(self, name: str) -> None:
        path = name.encode()
        self.seen.append(path)
        if self.files.stamp(path):
            raise _Differs(Mismatch(path.rpartition(b"/")[2].decode(), _shown(path), "none"))

    def part(self, own: Program, path: bytes) -> bool:
        """Binds a part if the guest has it; raises _Differs if it has another."""
        self.seen.append(path)
        if not self.files.stamp(path):
            return False
        try:
            real = self.files.realpath(path)
            found = self.identity(self.files, real)
        except (OSError, ElfError) as error:
            raise _Differs(Mismatch(own.role, f"{_shown(path)}: {_why(error)}", own.path)) from None
        if found != own.identity:
            has = f"another one in {_shown(real)}"
            raise _Differs(Mismatch(own.role, has, f"that of gcc {self.toolchain.version}"))
        self.bind(real, own)
        return True

    def bind(self, real: bytes, own: Program) -> None:
        # as and ld may lie elsewhere than the driver; they are the same for all prefixes.
        source = self.toolchain.source(self.prefix, own)
        self.binds[real] = source.encode()

    def candidates(self, name: str) -> Iterator[bytes]:
        for folder in self.folders():
            yield f"{folder}/{name}".encode()
        for each in self.path:
            if not self.files.visible(each):
                raise _Differs(Mismatch("PATH", f"{_shown(each)}, unseen by the host", "all of it"))
            yield each + b"/" + name.encode()

    def folders(self) -> list[str]:
        """The compiler's own folders, in the order in which it looks for programs."""
        triplet, major = self.toolchain.triplet, self.toolchain.major
        base = f"{self.base}/{triplet}"
        return [f"{base}/{major}", base, self.base, f"{self.prefix}/{triplet}/bin"]

    def names(self, forms: Sequence[str]) -> list[bytes]:
        toolchain = self.toolchain
        values = {"prefix": self.prefix, "base": self.base, "triplet": toolchain.triplet,
                  "major": toolchain.major}  # fmt: skip
        return [form.format(**values).encode() for form in forms]

    @property
    def base(self) -> str:
        return f"{self.prefix}/lib/gcc"

    def headers(self) -> None:
        """The native compiler names headers by real paths: they must be those compiled in."""
        for folder in self.names(_HEADERS):
            self.seen.append(folder)
            if self.files.stamp(folder) and (real := self.files.realpath(folder)) != folder:
                raise _Differs(
                    Mismatch("headers", f"{_shown(folder)} at {_shown(real)}", "no link")
                )
        self.absent(f"{self.prefix}/{self.toolchain.triplet}/include")
