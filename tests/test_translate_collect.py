"""Collect: the numbered cases 1 to 20 of docs/virtfs-format.md, section 7."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from pathlib import Path

import pytest

from guestctl import acl
from guestctl.errors import TreeError
from guestctl.translate import collect
from guestctl.tree.state import hold_tree
from tests.corpus import Handmade, HandmadeXattr

MAKERS = {"mapped-file": Handmade, "mapped-xattr": HandmadeXattr}
# A tree of each model in turn; else it is of mapped-file.
both_models = pytest.mark.parametrize("tree", MAKERS, indirect=True)


@pytest.fixture
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Handmade:
    made = MAKERS[getattr(request, "param", "mapped-file")](tmp_path / "tree")
    if in_xattrs(made):
        made.attributes("", 0o40755)
    else:
        (made.root / ".virtfs_metadata_root").write_bytes(
            b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=16877\n"
        )
    return made


def in_xattrs(tree: Handmade) -> bool:
    return isinstance(tree, HandmadeXattr)


def packed(tree: Handmade, **options) -> tuple[dict[str, tarfile.TarInfo], tuple[str, ...]]:
    out = io.BytesIO()
    report = collect(tree.root, out, **options)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), errors="surrogateescape") as tar:
        found = {os.path.normpath(info.name): info for info in tar}
    assert report.entries == len(found)
    return found, report.warnings


def refused(tree: Handmade, *words: str) -> None:
    with pytest.raises(TreeError) as caught:
        collect(tree.root, io.BytesIO())
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_case_01_missing_metadata_falls_back_per_key(tree):
    (tree.root / "bare").write_bytes(b"x")
    (tree.root / "bare").chmod(0o640)
    tree.file("half", b"y")
    tree.text("half", b"virtfs.mode=33261\n")
    tree.file("empty", b"z")
    tree.text("empty", b"")
    mine = os.getuid()
    tree.file("mine", b"m", uid=mine, gid=4242)
    found, warnings = packed(tree)
    assert (found["bare"].uid, found["bare"].gid, found["bare"].mode) == (0, 0, 0o640)
    assert (found["half"].uid, found["half"].mode) == (0, 0o755)
    assert (found["empty"].uid, found["empty"].mode) == (0, 0o600)
    assert (found["mine"].uid, found["mine"].gid) == (mine, 4242)
    assert {line.split(":")[0] for line in warnings} == {"bare", "half", "empty"}
    found, _ = packed(tree, owner=(12, 13))
    assert (found["bare"].uid, found["bare"].gid) == (12, 13)
    assert found["mine"].uid == mine


def test_case_01_missing_attributes_fall_back_per_key(tmp_path):
    tree = HandmadeXattr(tmp_path / "tree")
    tree.attributes("", 0o40755)
    (tree.root / "bare").write_bytes(b"x")
    (tree.root / "bare").chmod(0o640)
    os.setxattr(tree.file("half", uid=3, gid=4), "user.virtfs.mode", b"\xed\x81\0\0")
    os.removexattr(tree.root / "half", "user.virtfs.uid")
    tree.file("mine", uid=os.getuid(), gid=4242)
    found, warnings = packed(tree)
    assert (found["bare"].uid, found["bare"].gid, found["bare"].mode) == (0, 0, 0o640)
    assert (found["half"].uid, found["half"].gid, found["half"].mode) == (0, 4, 0o755)
    assert (found["mine"].uid, found["mine"].gid) == (os.getuid(), 4242)
    assert {line.split(":")[0] for line in warnings} == {"bare", "half"}


@pytest.mark.parametrize(("claim", "word"), [(0o40755, "directory"), (0o170644, "unknown")])
@both_models
def test_case_02_a_file_that_claims_to_be_something_else(tree, claim, word):
    tree.file("liar", b"", mode=claim)
    refused(tree, "liar", word)


@both_models
def test_case_02_a_directory_that_claims_to_be_a_file(tree):
    tree.folder("liar", mode=0o100644)
    refused(tree, "liar", "file")


@both_models
def test_case_03_a_mode_without_type_takes_the_hosts(tree):
    tree.file("plain", b"x", mode=420)
    found, warnings = packed(tree)
    assert found["plain"].isreg() and found["plain"].mode == 0o644
    assert any("plain" in line for line in warnings)


@both_models
def test_case_04_devices(tree):
    tree.file("bare", mode=0o20600)
    tree.file("wide", mode=0o20600, rdev=-1048065)
    found, warnings = packed(tree)
    assert (found["bare"].devmajor, found["bare"].devminor) == (0, 0)
    assert (found["wide"].devmajor, found["wide"].devminor) == (1, 1048575)
    assert len(warnings) == 1 and "bare" in warnings[0]


@both_models
def test_case_05_negative_ids_are_high_ones(tree):
    tree.file("high", uid=-2, gid=-1294967296)
    found, _ = packed(tree)
    assert (found["high"].uid, found["high"].gid) == (4294967294, 3000000000)
    assert found["high"].pax_headers["uid"] == "4294967294"


@both_models
def test_case_06_symlink_targets_are_exact(tree):
    tree.file("newline", b"x\n", mode=0o120777)
    tree.file("longest", b"t" * 4095, mode=0o120777)
    found, _ = packed(tree)
    assert found["newline"].linkname == "x\n"
    assert found["longest"].linkname == "t" * 4095


@pytest.mark.parametrize("target", [b"", b"t" * 4096, b"a\0b"])
@both_models
def test_case_06_impossible_targets(tree, target):
    tree.file("broken", target, mode=0o120777)
    refused(tree, "broken")


@both_models
def test_case_07_links_and_special_files_of_the_host(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tree.root / "out").symlink_to(outside)
    os.mkfifo(tree.root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(tree.root)
        try:
            listener.bind("sock")
        finally:
            os.chdir(before)
    found, warnings = packed(tree)
    assert found["out"].issym() and found["out"].linkname == str(outside)
    assert found["pipe"].isfifo()
    assert "sock" not in found and any("sock" in line for line in warnings)
    assert not any("secret" in name for name in found)


@both_models
def test_case_08_sockets_are_left_out(tree):
    tree.file("sock", mode=0o140755, rdev=0)
    found, warnings = packed(tree)
    assert "sock" not in found
    assert any("sock" in line and "socket" in line for line in warnings)


@both_models
def test_case_09_devices_have_no_content(tree):
    tree.file("null", b"content", mode=0o20666, rdev=259)
    tree.file("pipe", b"content", mode=0o10644, rdev=0)
    found, _ = packed(tree)
    assert found["null"].size == 0 and found["pipe"].size == 0


@both_models
def test_case_10_hard_links_of_every_type(tree, tmp_path):
    for name, data, mode, rdev in (
        ("a-file", b"x", 0o100644, None),
        ("a-link", b"target", 0o120777, None),
        ("a-node", b"", 0o20600, 1281),
    ):
        tree.file(name, data, mode=mode, rdev=rdev)
        tree.link("b" + name[1:], name)
    os.link(tree.root / "a-file", tmp_path / "outside")
    found, warnings = packed(tree)
    for name in ("file", "link", "node"):
        assert found["b-" + name].islnk() and found["b-" + name].linkname == "./a-" + name
    assert not warnings


def test_case_10_the_name_with_metadata_counts(tree):
    (tree.root / "a").write_bytes(b"x")
    tree.folder("sub")
    os.link(tree.root / "a", tree.root / "sub/b")
    tree.attributes("sub/b", 0o104755, uid=9)
    found, warnings = packed(tree)
    assert (found["a"].mode, found["a"].uid) == (0o4755, 9)
    assert found["sub/b"].islnk() and not warnings
    tree.attributes("a", 0o100600, uid=1)
    found, warnings = packed(tree)
    assert found["a"].uid == 1
    assert any("sub/b" in line for line in warnings)


@both_models
def test_case_10_links_out_of_the_subtree_are_files(tree):
    tree.file("a", b"content")
    tree.folder("sub")
    tree.link("sub/b", "a")
    found, _ = packed(tree, path="sub")
    assert found["b"].isreg() and found["b"].size == 7


def test_case_11_orphans_are_ignored(tree):
    tree.attributes("gone", 0o100644)
    found, warnings = packed(tree)
    assert set(found) == {"."} and not warnings


def test_case_12_reserved_names_mean_nothing_beside_attributes(tmp_path):
    tree = HandmadeXattr(tmp_path / "tree")
    tree.attributes("", 0o40755)
    tree.folder("sub", uid=5)
    tree.file("sub/file", uid=6)
    (tree.root / "sub/.virtfs_metadata").mkdir()
    (tree.root / "sub/.virtfs_metadata/file").write_bytes(b"virtfs.uid=66\n")
    (tree.root / "sub/.virtfs_metadata_root").write_bytes(b"virtfs.uid=66\n")
    found, _ = packed(tree)
    assert set(found) == {".", "sub", "sub/file"} and found["sub/file"].uid == 6
    found, _ = packed(tree, path="sub")
    assert set(found) == {".", "file"} and found["."].uid == 5


def test_case_12_reserved_names_are_dropped_everywhere(tree):
    tree.folder("sub", uid=5)
    tree.file("sub/file")
    (tree.root / "sub/.virtfs_metadata_root").write_bytes(b"virtfs.uid=66\n")
    found, _ = packed(tree)
    assert set(found) == {".", "sub", "sub/file"}
    found, _ = packed(tree, path="sub")
    assert set(found) == {".", "file"}
    assert found["."].uid == 5


@both_models
def test_case_13_setuid_and_sticky_are_the_metadatas(tree):
    tree.file("su", b"", mode=0o104755)
    tree.folder("tmp", mode=0o41777)
    found, _ = packed(tree)
    assert found["su"].mode == 0o4755 and found["tmp"].mode == 0o1777


@both_models
def test_case_14_names_are_bytes(tree):
    names = ["\udcff\udc80", "new\nline", "ü", "n" * 255]
    for name in names:
        tree.file(name)
    deep = "d" * 200
    tree.folder(deep)
    tree.file(deep + "/\udcff" + "e" * 200)
    found, _ = packed(tree)
    assert set(found) == {".", deep, deep + "/\udcff" + "e" * 200, *names}
    assert all(not info.uname and not info.gname for info in found.values())


@both_models
def test_case_15_times_are_the_datas(tree):
    at = tree.file("file")
    os.utime(at, ns=(0, 1_600_000_000_123_456_789))
    old = tree.file("old")
    os.utime(old, ns=(0, -1_500_000_000))
    if not in_xattrs(tree):
        os.utime(tree.meta("file"), ns=(0, 0))
    found, _ = packed(tree)
    assert found["file"].pax_headers["mtime"] == "1600000000.123456789"
    assert found["old"].pax_headers["mtime"] == "-1.5"
    found, _ = packed(tree, mtime=7)
    assert found["file"].mtime == 7 and found["old"].pax_headers["mtime"] == "-1.5"


@both_models
def test_case_16_folders_without_permissions(tree):
    tree.folder("shut")
    tree.file("shut/file", b"x")
    (tree.root / "shut/file").chmod(0)
    if not in_xattrs(tree):
        (tree.root / "shut/.virtfs_metadata").chmod(0)
    (tree.root / "shut").chmod(0)
    found, _ = packed(tree)
    assert found["shut/file"].size == 1


@both_models
def test_case_17_user_attributes(tree):
    at = tree.file("file")
    os.setxattr(at, "user.colour", b"blue")
    os.setxattr(at, "user.virtfs.uid", b"\1\0\0\0")
    os.setxattr(at, "user.virtfs.system.posix_acl_access", acl.encode(b"u::rw-,g::r--,o::---"))
    found, _ = packed(tree)
    pax = {k: v for k, v in found["file"].pax_headers.items() if k.startswith("SCHILY")}
    assert pax.pop("SCHILY.xattr.user.colour") == "blue"
    # QEMU's own attributes are never passed on. Under mapped-xattr one holds an ACL.
    assert set(pax) == ({"SCHILY.acl.access"} if in_xattrs(tree) else set())
    assert found["file"].uid == (1 if in_xattrs(tree) else 0)


@pytest.mark.parametrize("kind", ["huge", "fifo", "directory", "symlink"])
def test_case_18_hostile_metadata(tree, tmp_path, kind):
    tree.file("victim")
    meta = tree.meta("victim")
    meta.unlink()
    if kind == "huge":
        meta.write_bytes(b"virtfs.uid=0\n" * 1000)
    elif kind == "fifo":
        os.mkfifo(meta)
    elif kind == "directory":
        meta.mkdir()
    else:
        (tmp_path / "real").write_bytes(b"virtfs.uid=0\n")
        meta.symlink_to(tmp_path / "real")
    refused(tree, "victim", "metadata")


@pytest.mark.parametrize("size", [0, 3, 5, 1000])
def test_case_18_hostile_attributes(tmp_path, size):
    """One of a wrong length is none, as for QEMU."""
    tree = HandmadeXattr(tmp_path / "tree")
    tree.attributes("", 0o40755)
    victim = tree.file("victim", uid=3, gid=4)
    for key in ("uid", "mode", "rdev"):
        os.setxattr(victim, f"user.virtfs.{key}", b"\xff" * size)
    found, warnings = packed(tree)
    assert (found["victim"].uid, found["victim"].gid, found["victim"].mode) == (0, 4, 0o600)
    assert len(warnings) == 1 and "victim" in warnings[0]


def test_case_18_a_metadata_folder_that_is_a_link(tree, tmp_path):
    tree.folder("sub")
    (tmp_path / "elsewhere").mkdir()
    (tree.root / "sub/.virtfs_metadata").symlink_to(tmp_path / "elsewhere")
    refused(tree, "sub")


@both_models
def test_case_19_a_tree_in_use_is_refused(tree):
    with hold_tree(tree.root, exclusive=True):
        refused(tree, "in use")
    packed(tree)


@both_models
def test_case_20_parents_first_and_holes_kept(tree):
    tree.folder("b")
    tree.file("b/c")
    tree.file("b.c")
    at = tree.file("a")
    with open(at, "wb") as out:
        out.seek(64 << 20)
        out.write(b"end")
        out.truncate(128 << 20)
    out = io.BytesIO()
    collect(tree.root, out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        names = [os.path.normpath(name) for name in tar.getnames()]
        assert names == [".", "a", "b", "b/c", "b.c"]
        info = tar.getmember("./a")
        assert info.size == 128 << 20
        content = tar.extractfile(info)
        content.seek(64 << 20)
        assert content.read(3) == b"end"
    assert len(out.getvalue()) < 1 << 20


def test_a_deep_tree(tree):
    path = tree.root
    for _ in range(400):
        path = path / "d"
        path.mkdir()
    out = io.BytesIO()
    assert collect(tree.root, out).entries == 401


def test_nothing_but_whole_archives_under_the_final_name(tree, tmp_path):
    tree.file("a", b"x" * 100_000)
    tree.file("z", b"", mode=0o120777)  # broken: found at the end
    out = tmp_path / "out" / "a.tar.gz"
    out.parent.mkdir()
    out.write_bytes(b"older")
    with pytest.raises(TreeError):
        collect(tree.root, out)
    assert out.read_bytes() == b"older"
    assert os.listdir(out.parent) == ["a.tar.gz"]


def test_the_same_bytes_each_time(tree, tmp_path):
    for name in ("b", "a", "c"):
        tree.file(name, os.urandom(1000))
    first = tmp_path / "first.tar.zst"
    second = tmp_path / "second.tar.zst"
    collect(tree.root, first)
    collect(tree.root, second)
    assert first.read_bytes() == second.read_bytes()
    assert stat.S_IMODE(first.stat().st_mode) & 0o600 == 0o600
