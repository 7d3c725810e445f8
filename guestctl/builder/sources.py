"""Sources: fetched once into a cache, checked, and from then on there without the net.

CACHE/sources/sha256/DIGEST   tarballs
CACHE/sources/git/HASH        mirrors of repositories, HASH of the address
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guestctl.definitions import Chunk
from guestctl.errors import BuildError, GuestctlError

__all__ = ["Sources"]

_GIT_DEADLINE = 1800
_NET_TIMEOUT = 60
_MAX_TARBALL = 8 << 30
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# A user's configuration may say how to reach a repository, but not what is in its files.
_FETCHING = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}
_READING = {**_FETCHING, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}


@dataclass(frozen=True)
class Sources:
    """The cache below `folder`. `aliases` are words that addresses begin with before a colon, and
    what these stand for: an address with `%s` for what comes after it, or at whose end it comes.
    Paths are relative to `base`. `schemes` opens addresses of further kinds by their scheme.
    `offline` forbids the net.
    """

    folder: Path
    aliases: Mapping[str, str]
    schemes: Mapping[str, Callable[[str], Path]]
    offline: bool = False
    base: Path = Path()

    def tarball(self, chunk: Chunk) -> Path:
        """The tarball of a chunk; raises BuildError when it cannot be had or is another one."""
        kept = self.folder / "sha256" / chunk.sha256
        if kept.exists():
            return kept
        address = self._address(chunk.tarball)
        self._may_fetch(chunk, address)
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{chunk.sha256[:16]}.{secrets.token_hex(4)}")
        try:
            with open(aside, "xb") as out:
                digest = _copy(self._open(chunk, address), out, chunk)
            if digest != chunk.sha256:
                raise BuildError(
                    f"{chunk.place}: {chunk.name}: {address} has another SHA-256: {digest}",
                    hint="somebody changed it, or sha256 is wrong",
                )
            os.rename(aside, kept)
        finally:
            aside.unlink(missing_ok=True)
        return kept

    def commit(self, chunk: Chunk) -> str:
        """The commit that `ref` means; raises BuildError when the repository has no such."""
        mirror = self._mirror(chunk)
        found = self._rev(mirror, chunk.ref)
        if found is None or not (_COMMIT.fullmatch(chunk.ref) or self.offline):
            self._update(chunk, mirror)
            found = self._rev(mirror, chunk.ref)
        if found is None:
            raise BuildError(f"{chunk.place}: {chunk.name}: {chunk.repo} has no {chunk.ref!r}")
        return found

    @contextlib.contextmanager
    def checkout(self, chunk: Chunk, commit: str, scratch: Path) -> Iterator[Path]:
        """The files of a commit, all with the commit's time, below `scratch` for as long as this
        lasts.
        """
        mirror = self._mirror(chunk)
        folder = scratch / f"checkout-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        index = folder.with_suffix(".index")
        try:
            paths = ["--git-dir", str(mirror), "--work-tree", str(folder)]
            _git([*paths, "checkout", "--force", commit, "--", "."], index=index)
            when = int(
                _git(["--git-dir", str(mirror), "show", "-s", "--format=%ct", commit]).strip()
            )
            for parent, folders, files in os.walk(folder):
                for name in (*folders, *files):
                    os.utime(Path(parent, name), (when, when), follow_symlinks=False)
            yield folder
        finally:
            index.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    # --- tarballs -------------------------------------------------------------------------------

    def _address(self, given: str) -> str:
        alias, colon, rest = given.partition(":")
        if not colon:
            return str(self.base / given)
        # YBD writes them with the colon.
        address = self.aliases.get(alias) or self.aliases.get(f"{alias}:")
        if address is None:
            return given
        return address.replace("%s", rest) if "%s" in address else address + rest

    def _may_fetch(self, chunk: Chunk, address: str) -> None:
        if self.offline and urllib.parse.urlsplit(address).scheme not in ("", "file"):
            raise BuildError(
                f"{chunk.place}: {chunk.name}: {address} is not in the cache, and we are offline"
            )

    def _open(self, chunk: Chunk, address: str) -> BinaryIO:
        scheme = urllib.parse.urlsplit(address).scheme
        try:
            if scheme in self.schemes:
                return open(self.schemes[scheme](address), "rb")
            if scheme == "":
                return open(address, "rb")
            if scheme not in ("http", "https", "file"):
                raise BuildError(f"{chunk.place}: {chunk.name}: tarball: no idea of {scheme}:")
            opened: BinaryIO = urllib.request.urlopen(address, timeout=_NET_TIMEOUT)
        except (OSError, GuestctlError) as error:
            if isinstance(error, BuildError):
                raise
            raise BuildError(
                f"{chunk.place}: {chunk.name}: {address}: {error}",
                hint=getattr(error, "hint", ""),
            ) from None
        return opened

    # --- repositories ---------------------------------------------------------------------------

    def _mirror(self, chunk: Chunk) -> Path:
        """The mirror of the chunk's repository, made when it is missing."""
        address = self._address(chunk.repo)
        mirror = self.folder / "git" / hashlib.sha256(address.encode()).hexdigest()[:32]
        if mirror.exists():
            return mirror
        self._may_fetch(chunk, address)
        mirror.parent.mkdir(parents=True, exist_ok=True)
        with _locked(mirror.with_suffix(".lock")):
            if not mirror.exists():
                aside = mirror.with_suffix(f".{secrets.token_hex(4)}")
                try:
                    _git(["clone", "--quiet", "--mirror", "--", address, str(aside)], chunk)
                    os.rename(aside, mirror)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
        return mirror

    def _update(self, chunk: Chunk, mirror: Path) -> None:
        self._may_fetch(chunk, self._address(chunk.repo))
        with _locked(mirror.with_suffix(".lock")):
            _git(["--git-dir", str(mirror), "remote", "update", "--prune"], chunk)

    def _rev(self, mirror: Path, ref: str) -> str | None:
        command = ["--git-dir", str(mirror), "rev-parse", "--verify", "--quiet"]
        try:
            return _git([*command, "--end-of-options", f"{ref}^{{commit}}"]).strip()
        except BuildError:
            return None


def _git(arguments: list[str], chunk: Chunk | None = None, index: Path | None = None) -> str:
    """What git prints; with a chunk it may reach its repository. Raises BuildError with what it
    complains of.
    """
    own = {"GIT_INDEX_FILE": str(index)} if index else {}
    try:
        done = subprocess.run(
            ["git", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", *arguments],
            env={**os.environ, **(_FETCHING if chunk else _READING), **own},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"git {arguments[0]} took more than {_GIT_DEADLINE} s") from None
    except FileNotFoundError:
        raise BuildError("git is not installed", hint="apt-get install git") from None
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        where = f"{chunk.place}: {chunk.name}: {chunk.repo}: " if chunk else ""
        raise BuildError(f"{where}{complaint}")
    return done.stdout


def _copy(source: BinaryIO, out: BinaryIO, chunk: Chunk) -> str:
    """Copies all and returns the SHA-256; raises BuildError for what never ends."""
    digest = hashlib.sha256()
    size = 0
    with source:
        try:
            while block := source.read(1 << 20):
                size += len(block)
                if size > _MAX_TARBALL:
                    raise BuildError(f"{chunk.place}: {chunk.name}: more than {_MAX_TARBALL} bytes")
                digest.update(block)
                out.write(block)
        except OSError as error:
            raise BuildError(f"{chunk.place}: {chunk.name}: {chunk.tarball}: {error}") from None
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
