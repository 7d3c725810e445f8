"""Stage: the numbered cases 21 to 40 of docs/virtfs-format.md, section 7, and more."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from guestctl.errors import ArchiveError, GuestctlError, TreeError
from guestctl.translate import check, collect, list_tree, repair, stage
from guestctl.tree.state import hold_tree, is_partial
from guestctl.vmeta import MAPPED_XATTR, MODELS, encode_text
from tests.corpus import (
    Handmade,
    Member,
    directory,
    every_type,
    hardlink,
    members,
    symlink,
    tar_bytes,
)

META = ".virtfs_metadata"
ROOT = ".virtfs_metadata_root"
# A tree of each model in turn, which is named after it; else it is of the usual one.
both_models = pytest.mark.parametrize("tree", MODELS, indirect=True)


def in_xattrs(tree: Path) -> bool:
    return tree.name == MAPPED_XATTR


def unpack(source: bytes | Path, tree: Path, **options):
    if tree.name in MODELS:
        options.setdefault("security_model", tree.name)
    return stage(io.BytesIO(source) if isinstance(source, bytes) else source, tree, **options)


def put(tree: Path, *wanted: Member, **options):
    return unpack(tar_bytes(list(wanted)), tree, **options)


def text(tree: Path, path: str) -> bytes:
    """The metadata of an entry as mapped-file has it, whatever the model; "" is the root."""
    at = tree / path
    if not in_xattrs(tree):
        return (at.parent / META / at.name if path else tree / ROOT).read_bytes()
    sizes = {"uid": 4, "gid": 4, "mode": 4, "rdev": 8}
    known = {key: f"user.virtfs.{key}" for key in sizes if f"user.virtfs.{key}" in os.listxattr(at)}
    values = {key: os.getxattr(at, name) for key, name in known.items()}
    assert {key: len(value) for key, value in values.items()} == {key: sizes[key] for key in known}
    return b"".join(
        b"virtfs.%b=%d\n" % (key.encode(), int.from_bytes(value[:4], "little", signed=True))
        for key, value in values.items()
    )


def perm(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def around(tree: Path) -> dict[str, tuple[object, ...]]:
    """All that lies beside the tree, and when it was last touched."""
    found = {}
    for path in tree.parent.rglob("*"):
        if tree not in (path, *path.parents):
            info = path.lstat()
            found[str(path)] = (info.st_mode, info.st_nlink, info.st_mtime_ns, info.st_ctime_ns)
    return found


def refused(tree: Path, *wanted: Member, words: tuple[str, ...] = (), **options) -> GuestctlError:
    before = around(tree)
    with pytest.raises((ArchiveError, TreeError)) as caught:
        put(tree, *wanted, **options)
    assert around(tree) == before
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert is_partial(tree)
    with pytest.raises(TreeError, match="partly staged"):
        collect(tree, io.BytesIO())
    return caught.value


@pytest.fixture
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / getattr(request, "param", "tree")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o777, 0])
@both_models
def test_case_21_complete_metadata_and_exact_host_modes(tree, umask):
    tree.mkdir(0o700)
    before = os.umask(umask)
    try:
        put(tree, *every_type())
    finally:
        os.umask(before)
    wanted = {
        "dir": b"3 4 17917",
        "dir/file": b"0 0 35309",
        "dir/high ids": b"-2 -1294967296 33188",
        "s-absolute": b"0 0 41471",
        "t-blk": b"0 6 25008 2065",
        "t-chr": b"0 5 8576 1281",
        "t-chr-wide": b"0 0 8576 286338160",
        "t-chr-widest": b"0 0 8576 -1048065",
        "t-fifo": b"0 0 4512 0",
    }
    keys = (b"uid", b"gid", b"mode", b"rdev")
    for path, values in wanted.items():
        lines = b"".join(
            b"virtfs.%b=%b\n" % pair for pair in zip(keys, values.split(), strict=False)
        )
        assert text(tree, path) == lines
    for folder, folders, files in os.walk(tree):
        assert all(perm(Path(folder, name)) == 0o700 for name in folders)
        assert all(perm(Path(folder, name)) == 0o600 for name in files)
    assert not check(tree)


@both_models
def test_case_22_directories_without_permissions(tree):
    put(tree, directory("./shut", 0), Member("./shut/in"))
    assert perm(tree / "shut") == 0o700
    assert text(tree, "shut").endswith(b"virtfs.mode=16384\n")


BAD_NAMES = [
    "/etc/x",
    "../x",
    "a/../../x",
    "a/..",
    "..",
    "./../x",
    "//x",
    "n" * 256,
    "a/" + "n" * 256 + "/b",
    ".virtfs_metadata",
    ".virtfs_metadata/x",
    "a/.virtfs_metadata_root",
    "./a/./.virtfs_metadata",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
def test_case_23_names_that_are_refused(tree, name, model):
    refused(tree, Member(name), security_model=model)
    refused(tree, hardlink("good", name), security_model=model)
    refused(tree, Member("short", pax=(("path", name),)), security_model=model)
    assert set(os.listdir(tree.parent)) == {tree.name}


@both_models
def test_case_23_a_nul_in_a_name(tree):
    refused(tree, Member("short", pax=(("path", "a\0b"),)), words=("NUL",))


@both_models
def test_case_23_spellings_that_are_fine(tree):
    put(tree, directory("./a/"), Member("./a//b/./c", data=b"x"), directory("."))
    assert [os.fsdecode(entry.path) for entry in list_tree(tree)] == ["", "a", "a/b", "a/b/c"]


@both_models
def test_case_24_entries_through_a_link(tree, tmp_path):
    (tmp_path / "outside").mkdir()
    for target in ("..", str(tmp_path / "outside"), "../outside", "d"):
        refused(tree, directory("d"), symlink("a", target), Member("a/b"), words=("a/b", "symlink"))
    refused(tree, symlink("a", ".."), hardlink("b", "a/outside"), words=("b",))
    assert not os.listdir(tmp_path / "outside")
    assert not any(path.is_symlink() for path in tree.rglob("*"))


@both_models
def test_case_24_through_links_of_the_host(tree, tmp_path):
    (tmp_path / "outside").mkdir()
    put(tree, Member("x"))
    (tree / "a").symlink_to(tmp_path / "outside")
    refused(tree, Member("a/b"), words=("a/b",))
    assert not os.listdir(tmp_path / "outside")


@pytest.mark.parametrize("follow", [False, True])
@both_models
def test_case_24_merged_usr(tree, follow):
    put(tree, directory("usr"), directory("usr/lib"), symlink("lib", "usr/lib"))
    wanted = (directory("lib", 0o700), Member("lib/new", data=b"n"))
    if not follow:
        refused(tree, *wanted, words=("lib",))
        return
    put(tree, *wanted, follow_dirs=True)
    assert (tree / "usr/lib/new").read_bytes() == b"n"
    assert (tree / "lib").read_bytes() == b"usr/lib"
    assert text(tree, "usr/lib").endswith(b"mode=16877\n")
    assert not check(tree)


@pytest.mark.parametrize("target", ["/usr/lib", "../../../usr/lib", "usr/../usr/./lib", "hop"])
@both_models
def test_case_24_links_are_followed_inside_only(tree, target):
    put(
        tree,
        directory("usr"),
        directory("usr/lib"),
        symlink("hop", "usr/lib/"),
        symlink("lib", target),
        Member("lib/new"),
        into="sysroot",
        follow_dirs=True,
    )
    assert (tree / "sysroot/usr/lib/new").exists()


@both_models
def test_case_24_loops_of_links(tree):
    loop = (symlink("a", "b"), symlink("b", "a"))
    refused(tree, *loop, Member("a/x"), follow_dirs=True)
    refused(tree, symlink("a", "/no/where"), Member("a/x"), follow_dirs=True)


@both_models
def test_case_25_implicit_parents(tree):
    put(tree, Member("a/b/c", uid=5, mtime=1234))
    for path in ("a", "a/b"):
        assert text(tree, path) == b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=16877\n"
        assert (tree / path).stat().st_mtime == 1234
    assert not check(tree)


@both_models
def test_case_26_the_root_has_attributes(tree):
    put(tree, directory("./", 0o1750, uid=7, gid=8, mtime=99), Member("./x"))
    assert text(tree, "") == b"virtfs.uid=7\nvirtfs.gid=8\nvirtfs.mode=%d\n" % 0o41750
    assert tree.stat().st_mtime == 99
    put(tree, directory("./", 0o700, uid=9), into="sub")
    assert text(tree, "sub").startswith(b"virtfs.uid=9\n")
    assert text(tree, "").startswith(b"virtfs.uid=7\n")
    assert (ROOT in os.listdir(tree)) != in_xattrs(tree)


@both_models
def test_case_27_duplicates_and_type_changes(tree):
    put(
        tree,
        Member("a", data=b"first", uid=1),
        hardlink("b", "a"),
        Member("a", data=b"second", uid=2),
        Member("c", data=b"file"),
        directory("c"),
        Member("c/d"),
        directory("e"),
        symlink("e", "target"),
        symlink("f", "a"),
        Member("f", data=b"f"),
    )
    assert (tree / "b").read_bytes() == b"first" and text(tree, "b").startswith(b"virtfs.uid=1\n")
    assert (tree / "a").read_bytes() == b"second" and text(tree, "a").startswith(b"virtfs.uid=2\n")
    assert (tree / "c/d").exists() and (tree / "e").read_bytes() == b"target"
    assert (tree / "f").read_bytes() == b"f"
    assert not check(tree)


@both_models
def test_case_27_a_full_directory_is_not_replaced(tree):
    refused(tree, directory("d"), Member("d/x"), Member("d"), words=("d", "not empty"))
    refused(tree, directory("d"), Member("d/x"), symlink("d", "x"), words=("d", "not empty"))


@both_models
def test_case_28_hard_links_share_data_and_metadata(tree):
    put(tree, *every_type(), hardlink("early", "late"), Member("late", data=b"l"))
    for name, target in (
        ("z-link-chr", "t-chr"),
        ("z-link-fifo", "t-fifo"),
        ("z-link-file", "dir/file"),
        ("z-link-symlink", "s-dangling"),
        ("early", "late"),
    ):
        old, new = tree / target, tree / name
        assert old.samefile(new)
        if not in_xattrs(tree):
            assert (old.parent / META / old.name).samefile(new.parent / META / new.name)
    assert not check(tree)


@both_models
def test_case_28_hard_links_to_nothing(tree):
    refused(tree, hardlink("a", "missing"), words=("a", "missing"))
    refused(tree, directory("d"), hardlink("a", "d"), words=("a", "directory"))
    refused(tree, Member("a"), hardlink("a", "a"), words=("itself",))


@both_models
def test_case_29_hard_links_with_a_payload(tree):
    raw = bytearray(
        tar_bytes(
            [
                Member("a", data=b"same", pax=(("comment", "c"),)),
                Member("b", data=b"same", pax=(("comment", "c"),)),
                Member("c", data=b"end"),
            ]
        )
    )
    at = raw.find(b"b" + bytes(99))
    raw[at + 156 : at + 158] = b"1a"
    raw[at + 148 : at + 156] = b"        "
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    unpack(bytes(raw), tree)
    assert (tree / "a").samefile(tree / "b") and (tree / "c").read_bytes() == b"end"


@both_models
def test_case_30_a_source_of_hard_links_is_copied(tree, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"x")
    os.link(source / "a", tmp_path / "cached")
    unpack(source, tree)
    assert (tree / "a").stat().st_ino != (source / "a").stat().st_ino
    (tree / "a").write_bytes(b"changed")
    assert (tmp_path / "cached").read_bytes() == b"x"


@both_models
def test_case_31_what_cannot_be_held(tree):
    if not in_xattrs(tree):
        device = Member("dev", tarfile.CHRTYPE, rdev=(4095, 1048575))
        refused(tree, device, words=("dev", "unset"))
    refused(tree, Member("high", uid=4294967295), words=("high", "4294967295"))
    refused(tree, directory("high", uid=4294967295), words=("high", "4294967295"))
    refused(tree, Member("wide", tarfile.CHRTYPE, rdev=(4096, 0)), words=("wide",))


def test_case_31_mapped_xattr_holds_the_widest_device(tree):
    put(tree, Member("dev", tarfile.CHRTYPE, rdev=(4095, 1048575)), security_model="mapped-xattr")
    out = io.BytesIO()
    collect(tree, out)
    assert members(out.getvalue())[b"dev"][5] == (4095, 1048575)


@both_models
def test_case_32_empty_directories_have_no_metadata_folder(tree):
    put(tree, directory("empty"), directory("full"), Member("full/x"))
    assert not os.listdir(tree / "empty")
    assert (META in os.listdir(tree / "full")) != in_xattrs(tree)


@both_models
def test_case_33_times_of_directories(tree):
    put(
        tree,
        directory("a", pax=(("mtime", "1000.5"),)),
        directory("a/b", pax=(("mtime", "-7.25"),)),
        Member("a/b/c"),
        Member("a/d"),
    )
    assert (tree / "a").stat().st_mtime_ns == 1_000_500_000_000
    assert (tree / "a/b").stat().st_mtime_ns == -7_250_000_000


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
def test_case_34_what_qemu_cannot_store_is_kept_aside(tree, model):
    value = "\1\0\0\2\0 \0\0" + "\0" * 12
    ping = Member("ping", data=b"p", pax=(("SCHILY.xattr.security.capability", value),))
    acl = ("SCHILY.acl.access", "user::rw-,user:5:r--:5,group::r--,mask::r--,other::---")
    put(tree, ping, Member("acl", pax=(acl,)), directory("d", pax=(acl,)), security_model=model)
    os.rename(tree / "ping", tree / "pong")
    if model == "mapped-file":
        os.rename(tree / META / "ping", tree / META / "pong")
        assert not os.listxattr(tree / "pong")
    out = io.BytesIO()
    assert not collect(tree, out).warnings
    found = members(out.getvalue())
    assert dict(found[b"pong"][-1])["SCHILY.xattr.security.capability"] == value
    assert dict(found[b"acl"][-1])["SCHILY.acl.access"] == acl[1]
    assert dict(found[b"d"][-1])["SCHILY.acl.access"] == acl[1]
    assert not check(tree)
    (tree / "pong").write_bytes(b"changed by someone")
    out = io.BytesIO()
    assert any("pong" in line for line in collect(tree, out).warnings)
    assert not members(out.getvalue())[b"pong"][-1]


def test_case_34_attributes_of_qemu_are_not_taken(tree):
    evil = Member("x", pax=(("SCHILY.xattr.user.virtfs.uid", "\1\0\0\0"),))
    report = put(tree, evil, security_model="mapped-xattr")
    assert any("user.virtfs.uid" in line for line in report.warnings)
    assert os.getxattr(tree / "x", "user.virtfs.uid") == bytes(4)


@both_models
def test_case_35_odd_types(tree):
    raw = tar_bytes([Member("label"), Member("contiguous", b"7", b"c"), Member("odd", b"Z", b"o")])
    raw = bytearray(raw)
    raw[156:157] = b"V"
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    unpack(bytes(raw), tree)
    assert (tree / "contiguous").read_bytes() == b"c" and (tree / "odd").read_bytes() == b"o"
    assert text(tree, "odd").endswith(b"mode=33188\n")
    assert not (tree / "label").exists()


@both_models
def test_case_36_replaced_entries_leave_no_orphans(tree):
    put(tree, directory("d"), Member("f"), symlink("s", "x"))
    put(tree, Member("d"), directory("f"), Member("s"))
    assert not check(tree)


@both_models
def test_case_37_repair_rewrites_shared_metadata_in_place(tree):
    put(tree, Member("a", mode=0o600), hardlink("b", "a"))
    if in_xattrs(tree):
        os.setxattr(tree / "a", "user.virtfs.uid", b"\5\0\0\0")
        for key in ("gid", "mode"):
            os.removexattr(tree / "a", f"user.virtfs.{key}")
    else:
        (tree / META / "a").write_bytes(b"virtfs.uid=5\n")
    assert {problem.kind for problem in check(tree)} == {"partial"}
    assert all(problem.mended for problem in repair(tree))
    if not in_xattrs(tree):
        assert (tree / META / "a").samefile(tree / META / "b")
    assert text(tree, "b") == b"virtfs.uid=5\nvirtfs.gid=0\nvirtfs.mode=33152\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir(mode=0o755)
    (source / "tool").write_bytes(b"#!/bin/sh\n")
    (source / "tool").chmod(0o4755)
    (source / "read-only").write_bytes(b"r")
    (source / "read-only").chmod(0o444)
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe", 0o640)
    os.link(source / "tool", source / "tool2")
    (source / ".git").mkdir()
    (source / ".git/config").write_bytes(b"")
    os.utime(source / "tool", ns=(0, 1_600_000_000_123_456_789))
    return source


@both_models
def test_case_38_a_folder_of_the_host(tree, source):
    unpack(source, tree)
    assert (tree / "link").read_bytes() == b"/etc/passwd"
    assert text(tree, "link") == b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=41471\n"
    assert text(tree, "pipe").endswith(b"virtfs.mode=4512\nvirtfs.rdev=0\n")
    assert (tree / "pipe").is_file() and not (tree / "link").is_symlink()
    assert text(tree, "tool").endswith(b"mode=35309\n")
    assert (tree / "tool").samefile(tree / "tool2")
    assert (tree / "tool").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (tree / ".git/config").exists()
    assert not check(tree)


@both_models
def test_case_39_read_only_files(tree, source):
    unpack(source, tree, exclude_vcs=True)
    assert perm(tree / "read-only") == 0o600
    assert text(tree, "read-only").endswith(b"mode=33060\n")
    assert not (tree / ".git").exists()


@both_models
def test_case_40_the_users_own_files_stay_as_they_are(tree, source):
    before = {path: path.lstat() for path in source.rglob("*")}
    unpack(source, tree)
    for path, info in before.items():
        now = path.lstat()
        assert (now.st_mode, now.st_mtime_ns, now.st_nlink, now.st_ctime_ns) == (
            info.st_mode,
            info.st_mtime_ns,
            info.st_nlink,
            info.st_ctime_ns,
        )
    with pytest.raises(ArchiveError, match="virtfs tree already"):
        stage(tree, tree.parent / "other")


# What goes with the cases


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
def test_every_type_there_and_back(tree, tmp_path, model):
    put(tree, *every_type(), security_model=model)
    out = tmp_path / "out.tar"
    report = collect(tree, out)
    assert not report.warnings
    assert members(out) == members(tar_bytes(every_type()))
    again = tmp_path / "again"
    stage(out, again, security_model=model)
    collect(again, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == out.read_bytes()
    stage(out, again)  # once more onto itself
    collect(again, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == out.read_bytes()
    assert not check(again)


def test_a_tree_is_of_one_model(tree):
    put(tree, Member("a"))
    with pytest.raises(TreeError, match="mapped-file"):
        put(tree, Member("a"), security_model="mapped-xattr")


def test_a_partial_tree_is_staged_anew(tree):
    refused(tree, Member("a", data=b"a"), Member("../x"))
    put(tree, Member("b", data=b"b"))
    assert not is_partial(tree)
    assert not check(tree)
    assert {os.fsdecode(entry.path) for entry in list_tree(tree)} == {"", "b"}


def test_a_partial_stage_onto_something_wants_the_same_source(tree, tmp_path):
    good, bad = tmp_path / "good.tar", tmp_path / "bad.tar"
    put(tree, Member("kept"))
    bad.write_bytes(tar_bytes([Member("a"), Member("../x")]))
    good.write_bytes(tar_bytes([Member("b")]))
    with pytest.raises(ArchiveError):
        stage(bad, tree)
    with pytest.raises(TreeError, match="partly staged"):
        stage(good, tree)
    bad.write_bytes(tar_bytes([Member("a"), Member("b")]))
    stage(bad, tree)
    assert {os.fsdecode(entry.path) for entry in list_tree(tree)} == {"", "a", "b", "kept"}


def test_a_tree_in_use_is_not_staged(tree):
    tree.mkdir()
    with hold_tree(tree, exclusive=True), pytest.raises(TreeError, match="in use"):
        put(tree, Member("a"))


def test_hostile_trees_are_not_written_through(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    put(tree, Member("a"), Member("b"), directory("d"), Member("d/x"))
    (tree / "a").unlink()
    (tree / "a").symlink_to(outside)
    (tree / META / "b").unlink()
    (tree / META / "b").symlink_to(outside)
    os.unlink(tree / "d/.virtfs_metadata/x")
    os.rmdir(tree / "d/.virtfs_metadata")
    (tree / "d/.virtfs_metadata").symlink_to(tmp_path)
    put(tree, Member("a", data=b"new"), Member("b", data=b"new"))
    assert outside.read_bytes() == b"untouched"
    with pytest.raises(TreeError):
        put(tree, Member("d/x"))
    assert set(os.listdir(tmp_path)) == {"tree", "outside"}


def test_repair_mends_what_check_finds(tmp_path):
    made = Handmade(tmp_path / "t")
    made.file("fine")
    made.attributes("orphan", 0o100644)
    (made.root / "bare").write_bytes(b"x")
    made.file("no-type", mode=0o644)
    made.file("liar", mode=0o40755)
    made.file("null", b"content", mode=0o20666, rdev=259)
    made.file("malformed")
    made.text("malformed", b"virtfs.uid=0\r\nvirtfs.gid=0\nvirtfs.mode=33188\n")
    made.file("a")
    os.link(made.root / "a", made.root / "b")
    made.attributes("b", 0o100600)
    (made.root / "host-link").symlink_to("target")
    os.mkfifo(made.root / "host-pipe")
    made.folder("empty")
    (made.root / "empty/.virtfs_metadata").mkdir()
    made.folder("sub")
    (made.root / "sub/.virtfs_metadata_root").write_bytes(b"")
    made.file("sub/shut").chmod(0)
    kinds = {problem.kind for problem in check(made.root)}
    assert kinds == {
        "missing",
        "orphan",
        "no-type",
        "wrong-type",
        "content",
        "malformed",
        "unshared-links",
        "host-symlink",
        "host-special",
        "empty-metadata",
        "stray",
        "host-mode",
    }
    assert all(problem.mended for problem in repair(made.root))
    assert not check(made.root)
    found = {entry.path: entry for entry in list_tree(made.root)}
    assert found[b"host-link"].target == b"target"
    assert stat.S_ISFIFO(found[b"host-pipe"].mode)
    assert found[b"b"].link == b"a"


def test_metadata_that_unrelated_entries_share(tmp_path):
    """It is named, with both paths and what it does; repair gives each file its own."""
    made = Handmade(tmp_path / "t")
    made.file("a", mode=0o104755, uid=7)
    made.file("b")
    made.folder("d")
    made.file("d/x", b"x")
    made.link("d/y", "d/x")
    root = made.root / ".virtfs_metadata_root"
    root.write_bytes(encode_text(0, 0, 0o40750))
    for path, other in (
        ("b", made.meta("a")),
        ("d", root),
        ("d/x", made.meta("a")),
        ("d/y", made.meta("a")),
    ):
        made.meta(path).unlink()
        os.link(other, made.meta(path))
    found = {(os.fsdecode(p.path), p.kind, p.detail) for p in check(made.root)}
    assert found == {
        ("b", "shared-metadata", "that of a"),
        ("d", "shared-metadata", "that of ."),
        ("d/x", "shared-metadata", "that of a"),
        ("d/y", "shared-metadata", "that of a"),
    }
    line = next(p.line for p in check(made.root) if p.path == b"b")
    assert line == (
        "b: shared-metadata (that of a): it is another entry's too: "
        "a guest's chmod or chown of one changes both"
    )
    assert all(problem.mended for problem in repair(made.root))
    assert not check(made.root)
    metas = [made.meta(name) for name in ("a", "b", "d", "d/x", "d/y")]
    numbers = [path.stat().st_ino for path in (*metas, root)]
    assert len(set(numbers)) == 5 and numbers[3] == numbers[4]
    seen = {entry.path: entry for entry in list_tree(made.root)}
    assert {(seen[name].mode, seen[name].uid) for name in (b"a", b"b", b"d/x")} == {(0o104755, 7)}
    assert seen[b"d"].mode == seen[b""].mode == 0o40750 and seen[b"d/y"].link == b"d/x"


def test_metadata_that_is_shared_with_one_name_of_a_file(tmp_path):
    """The names of that file share what its other name has, which is nobody else's."""
    made = Handmade(tmp_path / "t")
    made.file("a", uid=1)
    made.file("b", uid=2)
    made.link("c", "b")
    made.meta("c").unlink()
    os.link(made.meta("a"), made.meta("c"))
    assert {(p.path, p.kind) for p in check(made.root) if p.path} == {
        (b"c", "shared-metadata"),
        (b"c", "unshared-links"),
    }
    assert all(problem.mended for problem in repair(made.root))
    assert not check(made.root)
    seen = {entry.path: entry for entry in list_tree(made.root)}
    assert (seen[b"a"].uid, seen[b"b"].uid, seen[b"c"].link) == (1, 2, b"b")


@pytest.mark.parametrize("known", ["a", "b", "sub/c", None])
def test_repair_of_links_of_which_one_name_has_metadata(tmp_path, known):
    """That one counts, wherever it stands; where none has any, they share what is made up."""
    made = Handmade(tmp_path / "t")
    made.folder("sub")
    (made.root / "a").write_bytes(b"x")
    for name in ("b", "sub/c"):
        os.link(made.root / "a", made.root / name)
    if known:
        made.attributes(known, 0o104755, uid=7)
    problems = repair(made.root)
    assert len([p for p in problems if p.path]) == (2 if known else 3)
    assert all(problem.mended for problem in problems)
    assert not check(made.root)
    found = {entry.path: entry for entry in list_tree(made.root)}
    first = found[b"a"]
    assert (first.mode, first.uid) == ((0o104755, 7) if known else (0o100644, 0))
    assert found[b"b"].link == found[b"sub/c"].link == b"a"


@pytest.mark.parametrize("into", ["file", "file/below", "link", "new", "d/new"])
def test_what_was_refused_before_anything_was_written_leaves_the_tree_as_it_was(
    tree, tmp_path, into
):
    """A wrong place, or what is no archive: the tree is not taken for partly staged."""
    put(tree, Member("file"), symlink("link", "d"), directory("d"), Member("d/x"))
    (tmp_path / "none.txt").write_bytes(b"no archive" * 1000)
    with pytest.raises(ArchiveError):
        stage(tmp_path / "none.txt", tree, into=into)
    if "new" not in into:
        with pytest.raises(ArchiveError, match="not a directory"):
            put(tree, Member("a"), into=into)
    assert not is_partial(tree) and not check(tree)
    collect(tree, io.BytesIO())


def test_a_source_that_is_not_there_makes_no_tree(tree, tmp_path):
    with pytest.raises(ArchiveError, match="nowhere"):
        stage(tmp_path / "nowhere", tree)
    assert not tree.exists()


def test_metadata_of_both_models_is_found_and_mended(tree, tmp_path):
    put(tree, Member("a", uid=3), directory("d"), Member("d/b", uid=4))
    for path in ("d", "d/b"):
        os.setxattr(tree / path, "user.virtfs.uid", b"\7\0\0\0")
    assert [(p.path, p.kind) for p in check(tree)] == [(b"d", "mixed"), (b"d/b", "mixed")]
    os.setxattr(tree, "user.virtfs.mode", b"\0\0\0\0")
    assert [p.kind for p in check(tree)] == ["mixed"]
    for work in (
        repair,
        lambda tree: collect(tree, io.BytesIO()),
        lambda tree: list(list_tree(tree)),
    ):
        with pytest.raises(TreeError, match="tree: it holds metadata of both") as caught:
            work(tree)
        assert "--security-model" in caught.value.hint
    assert [p.mended for p in repair(tree, security_model="mapped-file")] == [True] * 3
    assert not check(tree) and text(tree, "d/b").startswith(b"virtfs.uid=4\n")
    other = tmp_path / "other"
    put(other, directory("d"), Member("d/b", uid=4), security_model="mapped-xattr")
    (other / "d" / META).mkdir()
    (other / "d" / META / "b").write_bytes(b"virtfs.uid=9\n")
    (problem,) = repair(other)
    assert problem.kind == "mixed" and problem.mended and not check(other)
