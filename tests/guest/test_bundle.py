"""An image travels with its inputs: exported here, imported into an empty cache, booted there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from guestctl import Pool, bundle
from guestctl.errors import ImageError
from guestctl.image import Image, archive
from guestctl.places import Places
from guestctl.recipe import Locked


@pytest.fixture(scope="module")
def exported(armv5l_image: Image, places: Places, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "armv5l.tar"
    bundle.export("armv5l", path, cache_dir=places.cache)
    return path


def test_an_imported_image_is_the_same_and_boots(
    exported: Path, armv5l_image: Image, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    elsewhere = Places(tmp_path / "cache", tmp_path / "run", tmp_path / "config", tmp_path / "data")
    made = bundle.import_(exported, cache_dir=elsewhere.cache)
    assert made.id == armv5l_image.id
    assert made.root.read_bytes() == armv5l_image.root.read_bytes()
    with Pool("armv5l", 1, places=elsewhere) as pool, pool.lease(30) as guest:
        assert guest.run(["true"], timeout=60).status == 0
    entries = [Locked(**entry) for entry in made.facts()["packages"]]
    assert archive("armv5l", cache_dir=elsewhere.cache).have(entries)


def test_a_bundle_is_the_same_each_time(exported: Path, places: Places, tmp_path: Path) -> None:
    bundle.export("armv5l", tmp_path / "again.tar", cache_dir=places.cache)
    assert (tmp_path / "again.tar").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize("keep", [100, 5_000_000, -2_000_000])
def test_a_cut_bundle_is_refused_and_leaves_nothing(
    exported: Path, tmp_path: Path, keep: int
) -> None:
    (tmp_path / "cut.tar").write_bytes(exported.read_bytes()[:keep])
    with pytest.raises(ImageError):
        bundle.import_(tmp_path / "cut.tar", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_a_flipped_bit_is_found(exported: Path, tmp_path: Path) -> None:
    data = bytearray(exported.read_bytes())
    with tarfile.open(exported) as tar:
        data[tar.getmember("image/root").offset_data + 1_000_000] ^= 1
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(ImageError, match="SHA-256"):
        bundle.import_(tmp_path / "bad.tar", cache_dir=tmp_path / "cache")


def test_what_the_manifest_does_not_name_is_refused(exported: Path, tmp_path: Path) -> None:
    with tarfile.open(exported) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        data = manifest.read()
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name, content in (("manifest.json", data), ("image/../../../escape", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ImageError, match="not in its manifest"):
        bundle.import_(tmp_path / "bad.tar", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "escape").exists()
