"""Bundles: an image with everything that it was made from, in one tar file, for a host without net.

A bundle holds `manifest.json`, then `image/NAME` for each part of the image, then
`packages/SHA256` for each locked input. All hashes stand in the manifest, and all are checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from guestctl import image
from guestctl.errors import ImageError
from guestctl.image import Image
from guestctl.recipe import Locked
from guestctl.targets import target

__all__ = ["export", "import_"]

_MANIFEST = "manifest.json"
_MANIFEST_MAX = 16 << 20
_PART_MAX = 8 << 30
_CHUNK = 1 << 20


def export(arch: str, out: Path, *, cache_dir: Path) -> Image:
    """Writes the bundle of today's image of `arch` to `out`, aside first; raises ImageError."""
    made = image.load(arch, cache_dir=cache_dir)
    facts = made.facts()
    entries = [Locked(**entry) for entry in facts["packages"]]
    files = image.archive(arch, cache_dir=cache_dir).fetch(entries)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, _MANIFEST, made.manifest)
            for name in sorted(facts["files"]):
                _add(tar, f"image/{name}", made.directory / name)
            for entry, path in sorted(files.items(), key=lambda pair: pair[0].sha256):
                _add(tar, f"packages/{entry.sha256}", path)
        os.replace(aside, out)
    except OSError as error:
        raise ImageError(f"{out}: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)
    return made


def import_(bundle: Path, *, cache_dir: Path) -> Image:
    """Puts a bundle's image and inputs into the cache; raises ImageError for one that is not whole.

    The inputs let `image build` make the image again without the net.
    """
    draft = cache_dir / "images" / f".import.{os.getpid()}.part"
    draft.mkdir(parents=True)
    try:
        with tarfile.open(bundle, "r:") as tar:
            members = iter(tar)
            facts, arch, key = _begin(tar, members, bundle)
            (draft / _MANIFEST).write_bytes(facts)
            _take(tar, members, json.loads(facts), draft, cache_dir, bundle)
        place = draft.with_name(f"{arch}-{key}")
        shutil.rmtree(place, ignore_errors=True)
        draft.replace(place)
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{bundle}: not a whole bundle: {error}") from None
    except OSError as error:
        raise ImageError(f"{bundle}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return next(made for made in image.made(arch, cache_dir=cache_dir) if made.id == key)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    """The same inputs give the same bundle: no owner, no time."""
    member = tarfile.TarInfo(name)
    member.size = path.stat().st_size
    member.mode = 0o644
    with open(path, "rb") as file:
        tar.addfile(member, file)


def _begin(
    tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo], bundle: Path
) -> tuple[bytes, str, str]:
    """The manifest, which comes first, with the architecture and the id that it names."""
    first = next(members, None)
    if first is None or first.name != _MANIFEST or first.size > _MANIFEST_MAX:
        raise ImageError(f"{bundle}: it does not begin with a manifest")
    data = _content(tar, first).read()
    facts = json.loads(data)
    arch, key = target(str(facts["arch"])).arch, str(facts["id"])
    if not (key.isalnum() and key.isascii()):
        raise ImageError(f"{bundle}: {key!r} is no image's id")
    return data, arch, key


def _take(
    tar: tarfile.TarFile,
    members: Iterator[tarfile.TarInfo],
    facts: dict[str, dict[str, str]],
    draft: Path,
    cache_dir: Path,
    bundle: Path,
) -> None:
    """Every part that the manifest names, and nothing else, each with its right hash."""
    parts = {f"image/{name}": digest for name, digest in facts["files"].items()}
    entries = [Locked(**entry) for entry in facts["packages"]]  # type: ignore[arg-type]
    inputs = {f"packages/{entry.sha256}": entry for entry in entries}
    store = image.archive(str(facts["arch"]), cache_dir=cache_dir)
    for member in members:
        if member.size > _PART_MAX:
            raise ImageError(f"{bundle}: {member.name}: too large")
        if member.name in inputs:
            store.adopt(inputs.pop(member.name), _content(tar, member))
        elif member.name in parts:
            digest = parts.pop(member.name)
            _copy(_content(tar, member), draft / member.name.rpartition("/")[2], digest)
        else:
            raise ImageError(f"{bundle}: {member.name}: not in its manifest")
    for name in (*parts, *inputs):
        raise ImageError(f"{bundle}: {name}: missing")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member) if member.isfile() else None
    return file if file is not None else io.BytesIO()


def _copy(source: IO[bytes], path: Path, digest: str) -> None:
    state = hashlib.sha256()
    with open(path, "xb") as file:
        while data := source.read(_CHUNK):
            state.update(data)
            file.write(data)
    if state.hexdigest() != digest:
        raise ValueError(f"{path.name} has not the SHA-256 that its manifest says")
