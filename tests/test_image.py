"""Images: what is said when there is none, and that the same inputs give the same bytes.

The whole build is a fixture of the guest tests; the pieces are tested here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from guestctl import image, resources
from guestctl.errors import HostLacks, ImageError, UsageError
from guestctl.imaging import hosttools, rootfs
from guestctl.imaging.workshop import Step, Workshop
from guestctl.packages import sha256_of
from guestctl.places import Places
from guestctl.recipe import parse_lock

ARCH = "armv5l"


def test_an_image_that_is_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        image.load(ARCH, cache_dir=tmp_path)
    assert caught.value.hint == f"guestctl image build {ARCH}"


def test_an_unknown_architecture_is_wrong_usage(tmp_path: Path) -> None:
    for call in (image.load, image.build, image.remove, image.lock):
        with pytest.raises(UsageError, match="pdp11"):
            call("pdp11", cache_dir=tmp_path)


def fake(cache: Path, key: str, sources: str) -> Path:
    folder = cache / "images" / f"{ARCH}-{key}"
    folder.mkdir(parents=True)
    for name in ("kernel", "initramfs", "root"):
        (folder / name).touch()
    (folder / "manifest.json").write_text(json.dumps({"id": key, "sources": sources}))
    return folder


def test_an_image_of_other_sources_is_not_loaded(tmp_path: Path) -> None:
    fake(tmp_path, "a" * 12, "other")
    with pytest.raises(ImageError, match="is older than"):
        image.load(ARCH, cache_dir=tmp_path)
    mine = fake(tmp_path, "b" * 12, image.sources_digest(ARCH))
    found = image.load(ARCH, cache_dir=tmp_path)
    assert (found.id, found.directory, found.dtb) == ("b" * 12, mine, None)


def test_half_an_image_is_none_and_removing_takes_all(tmp_path: Path) -> None:
    half = fake(tmp_path, "c" * 12, image.sources_digest(ARCH))
    (half / "manifest.json").unlink()
    assert image.made(cache_dir=tmp_path) == []
    whole = fake(tmp_path, "d" * 12, "")
    assert [made.directory for made in image.remove(ARCH, cache_dir=tmp_path)] == [whole]
    assert not whole.exists()


def test_missing_host_tools_are_named_with_their_packages() -> None:
    recipe = dataclasses.replace(
        image.recipe(ARCH),
        host={"no-such-cc": "gcc-no-such", "/no/such": "libno-dev", "sh": "dash"},
    )
    with pytest.raises(HostLacks, match="no-such-cc, /no/such") as caught:
        hosttools.versions(recipe)
    assert caught.value.hint == "apt-get install gcc-no-such libno-dev"


def test_the_same_packages_give_the_same_root(tmp_path: Path, places: Places) -> None:
    """Without the static tools, which take minutes: the rest of the real root, here and as it was
    made in another folder, by another run of this test where there was one."""
    path = resources.images() / f"{ARCH}.lock"
    lock = [e for e in parse_lock(path.read_text(), str(path)) if e.group == "root"]
    files = image.archive(ARCH, cache_dir=places.cache).fetch(lock)
    recipe = image.recipe(ARCH)
    links = recipe.links | {"/usr/bin/sh": "dash"}
    recipe = dataclasses.replace(recipe, static=(), links=links)

    def made(name: str) -> Path:
        workshop = Workshop(tmp_path / name, jobs=2, report=lambda event: None)

        def work(step: Step) -> None:
            rootfs.build_root(step, recipe, files, {})

        return workshop.make("root", {}, work) / "root"

    sources = sorted(Path(rootfs.__file__).parent.glob("*.py"))
    inputs = [repr(recipe), path.read_text(), *(source.read_text() for source in sources)]
    kept = places.cache / "tests" / f"root-{hashlib.sha256(repr(inputs).encode()).hexdigest()}"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(sha256_of(made("two/deeper")))
    root_file = made("one")
    assert sha256_of(root_file) == kept.read_text()
    listing = subprocess.run(
        ["unsquashfs", "-lln", root_file], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    root, *others = [line.split() for line in listing.splitlines() if " squashfs-root" in line]
    assert root[:2] == ["drwxr-xr-x", "0/0"]
    assert str(os.getuid()) not in {number for line in others for number in line[1].split("/")}
    su = next(line for line in others if line[-1].endswith("/usr/bin/su"))
    assert su[0] == "-rwsr-xr-x"


def test_packages_that_are_no_packages_fail_clearly(tmp_path: Path) -> None:
    path = resources.images() / f"{ARCH}.lock"
    entry = parse_lock(path.read_text(), str(path))[0]
    (tmp_path / "bad.deb").write_bytes(b"no package")
    workshop = Workshop(tmp_path / "cache", jobs=1, report=lambda event: None)

    def work(step: Step) -> None:
        rootfs.build_root(step, image.recipe(ARCH), {entry: tmp_path / "bad.deb"}, {})

    with pytest.raises(ImageError, match="dpkg-deb"):
        workshop.make("root", {}, work)
