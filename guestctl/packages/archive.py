"""Debian packages of any architecture, fetched by apt into a private root as an ordinary user.

apt checks the archive's signature with Debian's keyring, we check each file's SHA-256 besides.
Files are kept by their content: what is in the cache is never fetched again, and needs no net.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from guestctl.errors import ImageError
from guestctl.packages.apt import configuration, host_architecture, run_apt
from guestctl.packages.sources import private_sources
from guestctl.recipe import Locked

__all__ = ["SOURCE", "Archive", "PackageGone", "sha256_of"]

SOURCE = "source"  # the architecture of source packages' files
_UPDATE_DEADLINE = 600
_QUERY_DEADLINE = 120
_FETCH_DEADLINE = 1800
_NEUTRAL = ("all", SOURCE)
_ORIG = re.compile(r"\.orig\.tar\.\w+$")
_FRESH = 900  # an index younger than this, in seconds, is not asked for again


class PackageGone(ImageError):
    """The archive has not got these any more."""

    def __init__(self, message: str, gone: Sequence[Locked], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.gone = tuple(gone)


class Archive:
    """The Debian archive as seen through private apt roots below `directory`, one a architecture.

    `mirror` are addresses to use in place of those of the host's apt sources; `suites` are
    Debian's names of them (`bookworm-security` comes from the security archive).
    """

    def __init__(
        self, directory: Path, *, suites: Sequence[str], mirror: Sequence[str] = ()
    ) -> None:
        self._directory = directory
        self._suites = tuple(suites)
        self._mirror = tuple(mirror)

    def update(self, arch: str) -> None:
        """Fetches and verifies the index of `arch`; raises ImageError when that cannot be done."""
        root = self._root(arch)
        with self._locked():
            run_apt(root, ["apt-get", "update", "-q", "--error-on=any"], _UPDATE_DEADLINE)
            (root / "updated").touch()

    def resolve(self, names: Iterable[str], arch: str, group: str = "root") -> tuple[Locked, ...]:
        """Returns the packages of `arch` that `names` and all that they depend on come to.

        Recommended packages are left out. Raises ImageError when apt finds no solution.
        """
        self._refresh(arch)
        root = self._root(arch)
        command = ["apt-get", "install", "-q", "-y", "-s", "--no-install-recommends", *names]
        text = run_apt(root, command, _QUERY_DEADLINE)
        chosen = re.findall(r"^Inst (\S+?)(?::\S+)? (?:\[\S*\] )?\((\S+) ", text, re.MULTILINE)
        found = self._known(root, [f"{name}={version}" for name, version in chosen], group)
        wanted = set(chosen)
        return tuple(sorted(p for p in found if (p.name, p.version) in wanted))

    def pick(self, names: Iterable[str], arch: str, group: str = "root") -> tuple[Locked, ...]:
        """As `resolve`, but only the named packages, without what they depend on.

        With `all` as `arch`, the packages are those of the host's index.
        """
        arch = host_architecture() if arch == "all" else arch
        self._refresh(arch)
        found = []
        for name in names:
            known = self._known(self._root(arch), [name], group, newest=True)
            if not known:
                raise ImageError(f"the archive has no package {name} ({arch})")
            found += known[:1]
        return tuple(sorted(found))

    def sources(self, names: Iterable[str], group: str = SOURCE) -> tuple[Locked, ...]:
        """Returns the files of the newest source packages of these names."""
        self._refresh(SOURCE)
        root = self._root(SOURCE)
        found = []
        for name in names:
            command = ["apt-get", "source", "-qq", "--print-uris", "--download-only"]
            text = run_apt(root, [*command, "--only-source", name], _QUERY_DEADLINE)
            files = re.findall(r"^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$", text, re.MULTILINE)
            version = self._version_of(root, name, {file for _, file, _, _ in files})
            for uri, _, size, digest in files:
                path = "pool/" + unquote(uri).partition("/pool/")[2]
                found.append(Locked(group, name, version, SOURCE, path, int(size), digest))
        return tuple(sorted(found))

    def orig_tarball(self, name: str) -> tuple[Locked, Path]:
        """Fetches the upstream tarball of the source package `name`.

        Where the newest version cannot be fetched, since mirrors do not have all that their indexes
        name, an older one with the same tarball serves as well.
        """
        newest = next((e for e in self.sources([name]) if _ORIG.search(e.filename)), None)
        if newest is None:
            raise ImageError(f"the source package {name} has no upstream tarball")
        try:
            return newest, self.fetch([newest])[newest]
        except ImageError:
            for other in self._versions_with(newest):
                with contextlib.suppress(ImageError):
                    return other, self.fetch([other])[other]
            raise

    def _versions_with(self, file: Locked) -> list[Locked]:
        """The same file in other versions of its source package."""
        command = ["apt-cache", "showsrc", "--only-source", file.name]
        text = run_apt(self._root(SOURCE), command, _QUERY_DEADLINE)
        having = [paragraph for paragraph in text.split("\n\n") if file.sha256 in paragraph]
        versions = [re.search(r"^Version: (\S+)$", each, re.MULTILINE) for each in having]
        others = [each[1] for each in versions if each and each[1] != file.version]
        return [replace(file, version=version) for version in others]

    def have(self, entries: Iterable[Locked]) -> bool:
        """Whether all of them are in the cache."""
        return all(self._stored(entry).exists() for entry in entries)

    def adopt(self, entry: Locked, source: IO[bytes]) -> None:
        """Keeps a file that comes from elsewhere; raises ImageError when it is not that entry's."""
        place = self._stored(entry)
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            with open(draft, "wb") as file:
                shutil.copyfileobj(source, file)
            if sha256_of(draft) != entry.sha256:
                raise ImageError(f"{entry.name} {entry.version}: its file has another SHA-256")
            draft.replace(place)
        finally:
            draft.unlink(missing_ok=True)

    def fetch(
        self, entries: Iterable[Locked], progress: Callable[[float], None] = lambda share: None
    ) -> dict[Locked, Path]:
        """Returns where each entry lies in the cache, after fetching those that are missing.

        `progress` is told the share that is done. Raises PackageGone with the names and versions
        that the archive has no more, ImageError when a file is not what the lock says.
        """
        entries = list(entries)
        missing = [entry for entry in entries if not self._stored(entry).exists()]
        if missing:
            by_arch, gone = self._assign(entries, missing)
            if gone:
                shown = ", ".join(dict.fromkeys(f"{e.name} {e.version}" for e in gone[:8]))
                more = f" and {len(gone) - 8} more" if len(gone) > 8 else ""
                raise PackageGone(f"the archive no longer has {shown}{more}", gone)
            total = sum(entry.size for entry in missing) or 1
            done = 0
            for arch, group in by_arch.items():
                before = done
                self._download(arch, group, partial(_tell, progress, before, total))
                done += sum(entry.size for entry in group)
        return {entry: self._stored(entry) for entry in entries}

    def _assign(
        self, entries: list[Locked], missing: list[Locked]
    ) -> tuple[dict[str, list[Locked]], list[Locked]]:
        """Returns which architecture's index has which of `missing`, and those that none has."""
        by_arch: dict[str, list[Locked]] = {}
        host = host_architecture()
        home = next((e.architecture for e in entries if e.architecture not in _NEUTRAL), host)
        for entry in missing:
            by_arch.setdefault(
                home if entry.architecture == "all" else entry.architecture, []
            ).append(entry)
        gone = [entry for arch, group in by_arch.items() for entry in self._gone(arch, group)]
        # The indexes of two architectures need not agree on packages that suit all of them.
        again = [entry for entry in gone if entry.architecture == "all" and home != host]
        if again:
            missed = self._gone(host, again)
            found = [entry for entry in again if entry not in missed]
            by_arch[home] = [entry for entry in by_arch[home] if entry not in found]
            by_arch.setdefault(host, []).extend(found)
            gone = [entry for entry in gone if entry not in found]
        return {arch: group for arch, group in by_arch.items() if group}, gone

    def _stored(self, entry: Locked) -> Path:
        return self._directory / "sha256" / entry.sha256[:2] / entry.sha256

    def _root(self, arch: str) -> Path:
        kind = "deb-src" if arch == SOURCE else "deb"
        sources = private_sources(self._suites, self._mirror, kind, arch)
        key = hashlib.sha256(sources.encode()).hexdigest()[:12]
        root = self._directory / "apt" / f"{arch}-{key}"
        # The configuration has absolute paths: a cache that was moved gets a new one.
        wanted = configuration(root, host_architecture() if arch == SOURCE else arch)
        conf = root / "apt.conf"
        if not conf.exists() or conf.read_text() != wanted:
            for part in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "log"):
                (root / part).mkdir(parents=True, exist_ok=True)
            (root / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
            (root / "status").touch()
            (root / "etc/sources.list").write_text(sources)
            draft = root / f"apt.conf.{os.getpid()}"
            draft.write_text(wanted)
            draft.replace(conf)
        return root

    def _refresh(self, arch: str) -> None:
        stamp = self._root(arch) / "updated"
        if not stamp.exists() or abs(time.time() - stamp.stat().st_mtime) > _FRESH:
            self.update(arch)

    def _gone(self, arch: str, entries: list[Locked]) -> list[Locked]:
        root = self._root(arch)
        if (root / "updated").exists() and not self._absent(root, arch, entries):
            return []
        self._refresh(arch)
        return self._absent(root, arch, entries)

    def _absent(self, root: Path, arch: str, entries: list[Locked]) -> list[Locked]:
        if arch == SOURCE:
            names = sorted({entry.name for entry in entries})
            text = run_apt(
                root, ["apt-cache", "showsrc", "--only-source", *names], 120, ok=(0, 100)
            )
            return [entry for entry in entries if entry.sha256 not in text]
        queries = [f"{entry.name}={entry.version}" for entry in entries]
        known = {found.sha256 for found in self._known(root, queries, "")}
        return [entry for entry in entries if entry.sha256 not in known]

    def _known(
        self, root: Path, queries: list[str], group: str, newest: bool = False
    ) -> list[Locked]:
        if not queries:
            return []
        command = ["apt-cache", "show", *(["--no-all-versions"] if newest else []), *queries]
        text = run_apt(root, command, _QUERY_DEADLINE, ok=(0, 100))
        found = []
        for paragraph in text.split("\n\n"):
            keys = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", paragraph, re.MULTILINE))
            if "SHA256" in keys:
                name, version, arch = keys["Package"], keys["Version"], keys["Architecture"]
                size, digest = int(keys["Size"]), keys["SHA256"]
                found.append(Locked(group, name, version, arch, keys["Filename"], size, digest))
        return found

    def _version_of(self, root: Path, name: str, files: set[str]) -> str:
        text = run_apt(root, ["apt-cache", "showsrc", "--only-source", name], _QUERY_DEADLINE)
        for paragraph in text.split("\n\n"):
            version = re.search(r"^Version: (\S+)$", paragraph, re.MULTILINE)
            if version and all(
                re.search(rf" {re.escape(file)}$", paragraph, re.M) for file in files
            ):
                return version[1]
        raise ImageError(f"the archive's index does not describe the source package {name}")

    def _download(self, arch: str, entries: list[Locked], progress: Callable[[int], None]) -> None:
        root = self._root(arch)
        wanted = dict.fromkeys(f"{entry.name}={entry.version}" for entry in entries)
        command = ["apt-get", "download", "-q", *wanted]
        if arch == SOURCE:
            command = ["apt-get", "source", "-q", "--download-only", "--only-source", *wanted]
        with self._locked():
            drop = root / "drop"
            shutil.rmtree(drop, ignore_errors=True)
            drop.mkdir()
            watch = lambda: progress(sum(f.stat().st_size for f in drop.rglob("*") if f.is_file()))  # noqa: E731
            run_apt(root, command, _FETCH_DEADLINE, cwd=drop, watch=watch)
            fetched = {sha256_of(path): path for path in drop.iterdir() if path.is_file()}
            for entry in entries:
                if entry.sha256 not in fetched:
                    raise ImageError(
                        f"{entry.name} {entry.version}: what was fetched is not what is locked",
                        hint="the mirror may be broken; or make the lock anew: guestctl image lock",
                    )
                self._store(fetched[entry.sha256], self._stored(entry))
            shutil.rmtree(drop)

    @staticmethod
    def _store(path: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # two entries may be one file
            path.replace(place)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One apt at a time in these roots; waits for another at most as long as a download."""
        self._directory.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _FETCH_DEADLINE
        with (self._directory / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ImageError(
                            f"{file.name}: another fetch has held it too long"
                        ) from None
                    time.sleep(0.2)
            yield


def _tell(progress: Callable[[float], None], before: int, total: int, size: int) -> None:
    progress((before + size) / total)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
