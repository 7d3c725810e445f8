"""A guest's files as the host reads them: mounts, links of both security models, hostile links."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestctl.toolchain import GuestFiles
from guestctl.view import Mount, Tree
from tests.viewtools import GuestShare


@pytest.fixture(params=["mapped-file", "mapped-xattr"])
def share(request: pytest.FixtureRequest, tmp_path: Path) -> GuestShare:
    return GuestShare(tmp_path / "share", request.param)


@pytest.fixture
def files(share: GuestShare, tmp_path: Path) -> GuestFiles:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/real").write_text("program")
    (root / "usr/bin/alias").symlink_to("real")
    (root / "bin").symlink_to("usr/bin")
    (root / "abs").symlink_to("/work/file")
    (root / "up").symlink_to("../../../../../../usr/bin/real")
    (root / "loop").symlink_to("loop")
    (root / "host").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_text("secret of the host")
    share.file("file", "of the share")
    share.folder("d")
    share.file("d/real", "deep")
    share.link("d/alias", "real")
    share.link("folder", "d")
    share.link("root", "/usr/bin/alias")
    share.link("out", "../../../../../outside")
    share.link("self", "self")
    trees = {"root": Tree(root, None, fixed=True), "work": Tree(share.path, share.model)}
    mounts = (Mount("root", b"", b"/"), Mount("work", b"", b"/work"), Mount(None, b"", b"/tmp"),
              Mount("work", b"d", b"/mnt/deep"))  # fmt: skip
    return GuestFiles(trees, mounts)


@pytest.mark.parametrize(
    ("path", "real"),
    [
        (b"/usr/bin/real", b"/usr/bin/real"),
        (b"/bin/alias", b"/usr/bin/real"),
        (b"//usr/./bin/../bin//alias", b"/usr/bin/real"),
        (b"/abs", b"/work/file"),
        (b"/up", b"/usr/bin/real"),
        (b"/work/folder/alias", b"/work/d/real"),
        (b"/work/root", b"/usr/bin/real"),
        (b"/mnt/deep/alias", b"/mnt/deep/real"),
        (b"/", b"/"),
        (b"/work", b"/work"),
    ],
)
def test_links_are_followed_as_the_guest_follows_them(
    files: GuestFiles, path: bytes, real: bytes
) -> None:
    assert files.realpath(path) == real


def test_files_are_read_through_links(files: GuestFiles) -> None:
    for path, text in ((b"/abs", b"of the share"), (b"/work/folder/alias", b"deep"),
                       (b"/work/root", b"program"), (b"/mnt/deep/real", b"deep")):  # fmt: skip
        with files.open(path) as file:
            assert file.read() == text


@pytest.mark.parametrize(
    "path", [b"/loop", b"/work/self", b"/host", b"/work/out", b"/missing", b"/work/file/x",
             b"/tmp/x", b"/usr", b"/work/.virtfs_metadata/../../outside"],
)  # fmt: skip
def test_what_is_not_the_guests_is_not_read(files: GuestFiles, path: bytes) -> None:
    with pytest.raises(OSError):
        files.open(path)


def test_a_stamp_changes_with_its_file(files: GuestFiles, share: GuestShare) -> None:
    before = files.stamp(b"/work/folder/alias")
    assert before == files.stamp(b"/work/d/real") != ()
    share.file("d/real", "other content")
    assert files.stamp(b"/work/folder/alias") != before
    assert files.stamp(b"/work/none") == ()
    assert files.stamp(b"/tmp/x") == ()


def test_what_the_host_cannot_see_is_known(files: GuestFiles) -> None:
    assert files.visible(b"/usr/none")
    assert not files.visible(b"/tmp/x")


@pytest.mark.parametrize(
    ("folder", "name", "holds"),
    [
        (b"/work/d/", b"real", True),
        (b"/work/folder/", b"alias", True),
        (b"/mnt/deep", b"alias", True),
        (b"/work/d", b"as", False),
        (b"/work", b"self", True),  # a link that leads nowhere
        (b"/tmp", b"as", True),  # out of sight
        (b"/mnt", b"as", True),  # in part
    ],
)
def test_names_in_a_folder(files: GuestFiles, folder: bytes, name: bytes, holds: bool) -> None:
    assert files.holds(folder, [b"x", name]) == holds
