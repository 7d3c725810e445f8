"""The archive: where it is, what apt resolves, that nothing gets in unverified. Uses the net."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from guestctl.errors import HostLacks, ImageError
from guestctl.packages import Archive, PackageGone, sha256_of
from guestctl.packages.sources import Entry, host_entries, private_sources

SUITES = ("bookworm", "bookworm-security")
MAIN = Entry("http://a.example/debian", "bookworm")
SECURITY = Entry("http://a.example/debian-security", "bookworm-security")

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://a.example/debian/
Suites: bookworm
  bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://other.example/debian
Suites: stable
Components: main
Signed-By: /usr/share/keyrings/other.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb http://b.example/debian bookworm main contrib # why
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://c.example/x bookworm main
deb [signed-by=/usr/share/keyrings/other.gpg] http://d.example/debian bookworm main
deb http://e.example/ubuntu noble main
deb-src http://f.example/debian bookworm main
deb cdrom:[Debian]/ bookworm main
"""  # noqa: E501


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive(tmp_path_factory.mktemp("packages"), suites=SUITES)


def test_both_forms_of_sources_are_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/old.list.save").write_text(ONE_LINE)
    assert host_entries(tmp_path) == (
        Entry("http://b.example/debian", "bookworm"),
        Entry("http://c.example/x", "bookworm"),
        Entry("http://a.example/debian", "bookworm"),
        Entry("http://a.example/debian", "bookworm-updates"),
    )


def test_security_comes_from_the_security_archive() -> None:
    text = private_sources(SUITES, (), "deb", "armel", [MAIN, SECURITY])
    assert [line.split("] ")[1] for line in text.splitlines()] == [
        "http://a.example/debian bookworm main",
        "http://a.example/debian-security bookworm-security main",
    ]
    assert all("arch=armel signed-by=" in line for line in text.splitlines())


def test_a_mirror_takes_the_place_of_the_hosts_sources() -> None:
    text = private_sources(SUITES, ("http://m.example/debian",), "deb", "armel", [MAIN])
    assert "a.example" not in text
    assert "http://m.example/debian bookworm main" in text


@pytest.mark.parametrize("mirror", ["no address", "http://a b/", "http://x/ [trusted=yes]"])
def test_what_is_no_address_is_refused(mirror: str) -> None:
    with pytest.raises(ImageError, match="mirror"):
        private_sources(SUITES, (mirror,), "deb", "armel", [])


def test_a_host_without_debian_sources_is_told_what_to_do() -> None:
    with pytest.raises(HostLacks) as caught:
        private_sources(SUITES, (), "deb", "armel", [])
    assert "mirror" in caught.value.hint


def test_packages_of_another_architecture_are_resolved_and_fetched(archive: Archive) -> None:
    found = archive.resolve(["dash"], "armel")
    names = {entry.name: entry for entry in found}
    assert {"dash", "libc6"} <= set(names)
    assert names["libc6"].architecture == "armel"
    shares: list[float] = []
    files = archive.fetch(found, shares.append)
    assert all(sha256_of(path) == entry.sha256 for entry, path in files.items())
    assert all(path.stat().st_size == entry.size for entry, path in files.items())
    assert all(0 <= share <= 1.01 for share in shares)


def test_what_is_cached_needs_no_network(archive: Archive) -> None:
    found = archive.resolve(["dash"], "armel")
    files = archive.fetch(found)
    offline = Archive(
        next(iter(files.values())).parents[2], suites=SUITES, mirror=("http://127.0.0.1:9/debian",)
    )
    assert offline.fetch(found) == files
    with pytest.raises(ImageError) as caught:
        offline.update("armel")
    assert "network" in caught.value.hint


def test_what_is_gone_is_named_with_its_version(archive: Archive) -> None:
    (dash,) = archive.pick(["dash"], "armel")
    gone = dataclasses.replace(dash, version="0.0.1-1", sha256="0" * 64)
    with pytest.raises(PackageGone, match=r"no longer has dash 0\.0\.1-1") as caught:
        archive.fetch([dash, gone])
    assert caught.value.gone == (gone,)


def test_an_unknown_package_is_named(archive: Archive) -> None:
    with pytest.raises(ImageError, match="no-such-package"):
        archive.resolve(["no-such-package"], "armel")
    with pytest.raises(ImageError, match="no-such-package"):
        archive.pick(["no-such-package"], "armel")


def test_an_upstream_tarball_comes_from_a_source_package(archive: Archive) -> None:
    entry, path = archive.orig_tarball("hello")
    assert entry.name == "hello"
    assert entry.version.startswith(entry.filename.split("hello_")[1].split(".orig")[0])
    assert sha256_of(path) == entry.sha256


def test_a_version_that_the_mirror_lacks_gives_way_to_one_with_the_same_tarball(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    (real,) = (each for each in archive.sources(["dash"]) if ".orig.tar" in each.filename)
    gone = replace(real, version="0-none")
    monkeypatch.setattr(archive, "sources", lambda _names: (gone,))
    entry, path = archive.orig_tarball("dash")
    assert entry.version != gone.version
    assert sha256_of(path) == real.sha256


def test_all_files_of_a_source_package_are_found(archive: Archive) -> None:
    kinds = [entry.filename.rpartition("_")[2] for entry in archive.sources(["dash"])]
    assert any(kind.endswith(".dsc") for kind in kinds)
    assert any(".orig.tar." in kind for kind in kinds)
