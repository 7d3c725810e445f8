"""stage --link: what it makes equals what plain stage makes, shares inodes, and is safe."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import marshal
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestctl.cloning import Origin
from guestctl.errors import ArchiveError, ShareError, TreeError
from guestctl.launch import start_guest
from guestctl.places import Places
from guestctl.rundir import GuestDir, flocked
from guestctl.share import Share, share_lock
from guestctl.spec import GuestSpec
from guestctl.translate import (
    Limits,
    StageReport,
    check,
    collect,
    list_tree,
    repair,
    stage,
    tree_state,
    unpacked,
)
from guestctl.tree import twofold
from tests.corpus import (
    Member,
    directory,
    every_type,
    hardlink,
    symlink,
    tar_bytes,
    write_every_type,
)
from tests.handles import handles, left_open
from tests.test_translate_laws import big, folders

MODELS = ["mapped-file", "mapped-xattr"]


@pytest.fixture(params=[1, 1 << 40], ids=["twofold", "alone"])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the second process that helps to link many files, and without."""
    monkeypatch.setattr(unpacked, "_MANY", request.param)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "guestctl" / "trees"


def archive(path: Path, *wanted: Member) -> Path:
    path.write_bytes(tar_bytes(list(wanted)))
    return path


def linked(source: Path, tree: Path, **options: object) -> StageReport:
    """Stages with links, and makes sure that there are some."""
    report = stage(source, tree, link=True, **options)  # type: ignore[arg-type]
    assert not [line for line in report.warnings if "not linked" in line]
    return report


# Later times are those of the test: of folders that no member names, for one.
LATEST = 1_700_000_000


def content(tree: Path) -> bytes:
    with tempfile.TemporaryFile() as out:
        collect(tree, out, mtime=LATEST)
        out.seek(0)
        return out.read()


def listed(tree: Path) -> list[tuple[object, ...]]:
    return [(entry.path, entry.mode, entry.size, entry.link) for entry in list_tree(tree)]


def same(one: Path, other: Path) -> None:
    assert listed(one) == listed(other)
    assert content(one) == content(other)
    assert not check(one) and not check(other)


def inodes(tree: Path) -> dict[str, int]:
    return {
        str(path.relative_to(tree)): path.stat().st_ino
        for path in tree.rglob("*")
        if path.is_file()
    }


def frozen(cache: Path) -> dict[str, tuple[object, ...]]:
    """All that must never change of what lies in the cache."""
    facts = {}
    for path in sorted(cache.glob("*/tree/**/*")):
        info = path.stat()
        if path.is_file():
            data = hashlib.sha256(path.read_bytes()).hexdigest()
            facts[str(path)] = (data, info.st_mode, info.st_mtime_ns, info.st_size, info.st_uid)
    assert facts
    return facts


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("model", MODELS)
def test_every_type_is_linked(tmp_path: Path, own_cache: Path, model: str) -> None:
    source = write_every_type(tmp_path / "every.tar")
    told = stage(source, tmp_path / "plain", security_model=model)
    for name in ("one", "two"):
        report = linked(source, tmp_path / name, security_model=model)
        assert (report.entries, report.bytes) == (told.entries, told.bytes)
        same(tmp_path / name, tmp_path / "plain")
    one, two = inodes(tmp_path / "one"), inodes(tmp_path / "two")
    shared = [name for name in one if one[name] == two[name]]
    # Only the trees' own marks, and the root's own metadata, are theirs alone.
    own = {".virtfs_metadata_root", ".virtfs_metadata/.virtfs_metadata"}
    assert set(one) - set(shared) <= own
    assert len(shared) > 20
    for name in shared:
        assert (tmp_path / "one" / name).stat().st_mode & 0o777 == 0o400
    assert tree_state(tmp_path / "one").links


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    folders(),
    folders(),
    st.sampled_from(MODELS),
    st.sampled_from(["", "in/side"]),
    st.sampled_from([1, 1 << 40]),
    st.booleans(),
)
def test_links_are_what_copies_are(
    first: list[Member], second: list[Member], model: str, into: str, many: int, follow: bool
) -> None:
    """Two artifacts merged into one tree: with links the same comes out, or the same error."""
    with (
        tempfile.TemporaryDirectory() as place,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(unpacked, "_MANY", many)
        folder = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        ways: dict[bool, object] = {}
        for link in (False, True):
            tree = folder / f"tree{link}"
            for number, wanted in enumerate((first, second)):
                source = archive(folder / f"{number}.tar", *wanted)
                try:
                    stage(
                        source,
                        tree,
                        into=into,
                        link=link,
                        security_model=model,
                        follow_dirs=follow,
                    )
                except ArchiveError as error:
                    ways[link] = str(error)
                    break
            else:
                assert not check(tree)
                ways[link] = content(tree)
        assert ways[True] == ways[False]


@pytest.mark.usefixtures("processes")
def test_collisions_are_those_of_plain_stage(tmp_path: Path, own_cache: Path) -> None:
    base = archive(
        tmp_path / "base.tar",
        directory("usr", 0o700, uid=5),
        directory("usr/lib", 0o2755, gid=7),
        Member("usr/lib/old", data=b"old", mode=0o4755),
        Member("usr/was-file", data=b"file"),
        directory("usr/was-empty"),
        symlink("lib", "usr/lib"),
        symlink("gone", "nowhere"),
    )
    more = archive(
        tmp_path / "more.tar",
        Member("usr/lib/old", data=b"new", mode=0o600, uid=9),
        hardlink("usr/lib/twin", "usr/lib/old"),
        directory("usr/was-file"),
        Member("usr/was-file/inside", data=b"in"),
        Member("usr/was-empty", data=b"now a file"),
        directory("gone"),
        Member("implied/deep/file", data=b"x"),
    )
    for tree, link in ((tmp_path / "plain", False), (tmp_path / "links", True)):
        for source in (base, more):
            stage(source, tree, link=link)
    same(tmp_path / "links", tmp_path / "plain")
    assert len(tree_state(tmp_path / "links").links) == 2
    through = archive(tmp_path / "through.tar", Member("lib/more", data=b"m"))
    for tree, link in ((tmp_path / "plain", False), (tmp_path / "links", True)):
        with pytest.raises(ArchiveError, match="not a directory"):
            stage(through, tree, link=link)
        stage(through, tree, link=link, follow_dirs=True)
    same(tmp_path / "links", tmp_path / "plain")
    full = archive(tmp_path / "full.tar", Member("usr", data=b"no directory"))
    for tree, link in ((tmp_path / "plain", False), (tmp_path / "links", True)):
        with pytest.raises(ArchiveError, match="not empty"):
            stage(full, tree, link=link)


def nested(attributes: tuple[tuple[str, str], ...] = ()) -> list[Member]:
    """Folders in folders, some of which no member names, and some of which are empty."""
    wanted = [directory("top", 0o2770, uid=3, pax=attributes, mtime=1_500_000_000)]
    for n in range(20):
        wanted.append(directory(f"top/{n % 4}/{n}", 0o700 + n, pax=attributes, mtime=10**9 + n))
        wanted.append(directory(f"top/{n % 4}/{n}/empty", 0o711, mtime=7))
        wanted += [Member(f"top/{n % 4}/{n}/deep/er/f{i}", data=b"%d" % i) for i in range(n % 5)]
    return wanted


def times(tree: Path) -> dict[bytes, int]:
    """Of all but the root; of a folder that was there before and is not named it is today's."""
    return {e.path: min(e.mtime, LATEST * 10**9) for e in list_tree(tree) if e.path}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("follow", [False, True])
def test_folders_in_folders(tmp_path: Path, model: str, follow: bool) -> None:
    """Into a tree that has nothing, some and all of them; times of folders are the archive's."""
    source = archive(tmp_path / "nested.tar", *nested((("SCHILY.xattr.user.of", "folder"),)))
    some = archive(
        tmp_path / "some.tar", directory("top/1", 0o750), Member("top/2/2/deep/other", data=b"o")
    )
    for name in ("plain", "links"):
        link = name == "links"
        stage(source, tmp_path / name, security_model=model, link=link, follow_dirs=follow)
        stage(some, tmp_path / f"some-{name}", security_model=model)
        stage(source, tmp_path / f"some-{name}", link=link, follow_dirs=follow)
        stage(source, tmp_path / f"in-{name}", into="a/b", link=link, security_model=model)
        stage(source, tmp_path / f"in-{name}", into="a", link=False)
    for prefix in ("", "some-", "in-"):
        one, other = tmp_path / f"{prefix}links", tmp_path / f"{prefix}plain"
        same(one, other)
        assert times(one) == times(other)
        assert tree_state(one).links and not tree_state(other).links
        assert {p.stat().st_mode & 0o777 for p in one.rglob("*") if p.is_dir()} == {0o700}


@pytest.mark.usefixtures("processes")
def test_a_folder_that_cannot_have_its_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is warned of, and all the rest is there."""
    source = archive(tmp_path / "nested.tar", *nested((("SCHILY.xattr.user.of", "folder"),)))
    linked(source, tmp_path / "one")
    setxattr = os.setxattr

    def full(path: int, name: bytes, *rest: object) -> None:
        if name == b"user.of":
            raise OSError(errno.ENOSPC, "no space left")
        setxattr(path, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "setxattr", full)
    warnings = stage(source, tmp_path / "links", link=True).warnings
    assert len(warnings) == 21 and all("user.of is lost" in line for line in warnings)
    monkeypatch.undo()
    assert listed(tmp_path / "links") == listed(tmp_path / "one")
    assert not check(tmp_path / "links")


@pytest.mark.usefixtures("processes")
def test_metadata_that_belongs_to_nothing_is_replaced(tmp_path: Path) -> None:
    """As a guest may leave it: it is in the way of folders that are not there."""
    source = archive(tmp_path / "nested.tar", *nested())
    for name in ("plain", "links"):
        meta = tmp_path / name / ".virtfs_metadata"
        meta.mkdir(parents=True, mode=0o700)
        meta.parent.chmod(0o700)
        (meta / "top").write_text("virtfs.uid=77\n")
        stage(source, tmp_path / name, link=name == "links")
    same(tmp_path / "links", tmp_path / "plain")
    assert tree_state(tmp_path / "links").links


@pytest.mark.usefixtures("processes")
def test_copied_over_what_was_linked(tmp_path: Path, own_cache: Path) -> None:
    """A leaf that the cache lacks is found late: folders that no member names are whole still."""
    source = archive(tmp_path / "nested.tar", *nested())
    stage(source, tmp_path / "plain")
    linked(source, tmp_path / "one")
    next(own_cache.glob("*/tree/top/3/19/deep/er/f0")).unlink()
    (warning,) = stage(source, tmp_path / "links", link=True).warnings
    assert "copied, not linked: the cache lacks" in warning
    same(tmp_path / "links", tmp_path / "plain")
    assert times(tmp_path / "links") == times(tmp_path / "plain")


@pytest.mark.usefixtures("processes")
def test_a_merged_usr_is_gone_through(tmp_path: Path) -> None:
    """Where a link of the tree leads to a folder, names come in order: the last one counts."""
    base = archive(tmp_path / "base.tar", directory("usr/lib"), symlink("lib", "usr/lib"))
    wanted = [Member(f"lib/{n}/f{n}", data=b"first") for n in range(20)]
    wanted += [Member(f"usr/lib/{n}/f{n}", data=b"second") for n in range(10, 30)]
    more = archive(tmp_path / "more.tar", directory("lib"), *wanted)
    for tree, link in ((tmp_path / "plain", False), (tmp_path / "links", True)):
        for source in (base, more):
            stage(source, tree, link=link, follow_dirs=True)
    same(tmp_path / "links", tmp_path / "plain")
    assert len(tree_state(tmp_path / "links").links) == 2
    assert (tmp_path / "links/usr/lib/15/f15").read_bytes() == b"second"


def test_deep_trees_are_linked(tmp_path: Path) -> None:
    """Deeper than a process may hold descriptors of all folders on the way."""
    path = "/".join(f"d{n}" for n in range(150))
    source = archive(tmp_path / "deep.tar", Member(f"{path}/f", data=b"x"))
    stage(source, tmp_path / "plain")
    linked(source, tmp_path / "links")
    same(tmp_path / "links", tmp_path / "plain")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("after", [0, 7])
def test_a_second_process_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, how: signal.Signals
) -> None:
    """What it has not done, or has but could not say, is done by the first; also where it is
    stopped: then it is waited for, and killed before anybody does what it may be at.
    """
    monkeypatch.setattr(twofold, "_DEADLINE", 0.5)
    wanted = [Member(f"d{n % 12}/f{n}", data=b"%d" % n) for n in range(60)]
    source = archive(tmp_path / "many.tar", *wanted)
    stage(source, tmp_path / "plain")
    monkeypatch.setattr(unpacked, "_MANY", 1)
    link, count, first = os.link, 0, os.getpid()

    def dying(*arguments: object, **options: object) -> None:
        nonlocal count
        count += os.getpid() != first
        if count > after:
            os.kill(os.getpid(), how)
        link(*arguments, **options)  # type: ignore[arg-type]

    fork, children = os.fork, []

    def counted() -> int:
        if child := fork():
            children.append(child)
        return child

    open_before = handles()
    monkeypatch.setattr(os, "link", dying)
    monkeypatch.setattr(twofold.os, "fork", counted)
    linked(source, tmp_path / "links")
    assert not left_open(open_before)
    same(tmp_path / "links", tmp_path / "plain")
    assert children
    for child in children:  # not any child: this process may have others, of other tests
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def test_a_second_process_that_is_lost_as_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an answer, as of one that is longer than a pipe holds, is none."""
    wanted = [Member(f"d{n % 12}/f{n}", data=b"%d" % n) for n in range(60)]
    source = archive(tmp_path / "many.tar", *wanted)
    stage(source, tmp_path / "plain")
    monkeypatch.setattr(unpacked, "_MANY", 1)
    halves = []

    def half(answer: object) -> bytes:
        data = marshal.dumps(answer)
        return data[: len(data) // 2]

    def loads(told: bytes) -> object:
        halves.append(told)
        return marshal.loads(told)

    # In place of the module: that itself is what Python keeps its compiled modules with.
    monkeypatch.setattr(twofold, "marshal", SimpleNamespace(dumps=half, loads=loads))
    linked(source, tmp_path / "links")
    assert halves[0]
    same(tmp_path / "links", tmp_path / "plain")


def test_a_second_process_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has as many links as it can: then all is copied, as without it."""
    wanted = [Member(f"d{n % 12}/f{n}", data=b"%d" % n) for n in range(60)]
    source = archive(tmp_path / "many.tar", *wanted)
    monkeypatch.setattr(unpacked, "_MANY", 1)
    linked(source, tmp_path / "first")
    link, first = os.link, os.getpid()

    def full(*arguments: object, **options: object) -> None:
        if os.getpid() != first:
            raise OSError(errno.EMLINK, "too many links")
        link(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", full)
    (warning,) = stage(source, tmp_path / "links", link=True).warnings
    assert "copied, not linked" in warning and "as many links" in warning
    same(tmp_path / "links", tmp_path / "first")


def test_warnings_are_said_each_time(tmp_path: Path) -> None:
    odd = Member("f", data=b"x", pax=(("SCHILY.xattr.user.virtfs.mode", "evil"),))
    source = archive(tmp_path / "odd.tar", odd)
    plain = stage(source, tmp_path / "plain").warnings
    assert plain
    assert linked(source, tmp_path / "one").warnings == plain
    assert linked(source, tmp_path / "two").warnings == plain


def test_other_ways_of_translating_are_other_entries(tmp_path: Path, own_cache: Path) -> None:
    source = write_every_type(tmp_path / "every.tar")
    linked(source, tmp_path / "one")
    linked(source, tmp_path / "two", limits=Limits(entries=1000))
    assert len(list(own_cache.glob("*/shape.json"))) == 2
    with pytest.raises(ArchiveError, match="more than 3 entries"):
        stage(source, tmp_path / "three", link=True, limits=Limits(entries=3))
    deep = archive(tmp_path / "deep.tar", Member("a/b/c/d", data=b"x"))
    linked(deep, tmp_path / "four", limits=Limits(depth=4))
    with pytest.raises(ArchiveError, match="more than 4 directories deep"):
        stage(deep, tmp_path / "five", into="in", link=True, limits=Limits(depth=4))


def test_nothing_changes_the_cache(tmp_path: Path, own_cache: Path) -> None:
    source = write_every_type(tmp_path / "every.tar")
    linked(source, tmp_path / "one")
    linked(source, tmp_path / "two")
    before = frozen(own_cache)
    stage(archive(tmp_path / "new.tar", *every_type()), tmp_path / "one")
    replaced = archive(tmp_path / "f.tar", Member("dir/file", data=b"another", mode=0o777))
    stage(replaced, tmp_path / "one")
    with pytest.raises(TreeError, match="change the cache"):
        repair(tmp_path / "one")
    assert not check(tmp_path / "one")
    collect(tmp_path / "two", tmp_path / "out.tar")
    shutil.rmtree(tmp_path / "one")
    assert frozen(own_cache) == before
    same(tmp_path / "two", tmp_path / "two")


def test_a_cleared_cache_harms_no_tree(tmp_path: Path, own_cache: Path) -> None:
    source = write_every_type(tmp_path / "every.tar")
    stage(source, tmp_path / "plain")
    linked(source, tmp_path / "one")
    shutil.rmtree(own_cache)
    same(tmp_path / "one", tmp_path / "plain")
    linked(source, tmp_path / "two")
    same(tmp_path / "two", tmp_path / "plain")


@pytest.mark.usefixtures("processes")
def test_a_damaged_entry_is_copied_once_and_made_anew(tmp_path: Path, own_cache: Path) -> None:
    source = write_every_type(tmp_path / "every.tar")
    stage(source, tmp_path / "plain")
    linked(source, tmp_path / "one")
    victim = next(own_cache.glob("*/tree/u-newline*"))
    victim.unlink()
    report = stage(source, tmp_path / "two", link=True)
    (warning,) = report.warnings
    assert warning.startswith("copied, not linked: the cache lacks ")
    same(tmp_path / "two", tmp_path / "plain")
    linked(source, tmp_path / "three")
    same(tmp_path / "three", tmp_path / "plain")


def test_what_an_earlier_boot_left_is_not_trusted(tmp_path: Path, own_cache: Path) -> None:
    source = archive(tmp_path / "s.tar", Member("f", data=b"whole"))
    linked(source, tmp_path / "one")
    shape = next(own_cache.glob("*/shape.json"))
    facts = json.loads(shape.read_text())
    shape.write_text(json.dumps({**facts, "boot": "another"}))
    lost = shape.parent / "tree" / "f"
    lost.chmod(0o600)
    lost.write_bytes(b"")  # as after a power cut
    linked(source, tmp_path / "two")
    assert (tmp_path / "two" / "f").read_bytes() == b"whole"


def test_an_archive_that_changes_is_another(tmp_path: Path) -> None:
    """Even one whose size and time stay the same."""
    source = archive(tmp_path / "s.tar", Member("f", data=b"one"))
    os.utime(source, (1, 1))
    time.sleep(2.1)  # now its sum is remembered
    linked(source, tmp_path / "one")
    linked(source, tmp_path / "two")
    data = source.read_bytes()
    source.write_bytes(data.replace(b"one", b"two"))
    os.utime(source, (1, 1))
    linked(source, tmp_path / "three")
    assert [(tmp_path / name / "f").read_bytes() for name in ("one", "two", "three")] == [
        b"one",
        b"one",
        b"two",
    ]


# --- where it copies, or refuses -------------------------------------------------------------


def copied(report: StageReport, why: str) -> None:
    assert [line for line in report.warnings if line.startswith("copied, not linked: ")]
    assert why in report.warnings[0], report.warnings


def test_the_same_artifact_at_two_places_is_two(tmp_path: Path) -> None:
    """Linked twice into one tree, its files would be hard links of each other."""
    source = write_every_type(tmp_path / "every.tar")
    for link, tree in ((False, tmp_path / "plain"), (True, tmp_path / "links")):
        stage(source, tree, into="a", link=link)
        report = stage(source, tree, into="b", link=link)
    copied(report, "has this artifact already")
    same(tmp_path / "links", tmp_path / "plain")


def test_streams_and_folders_are_copied(tmp_path: Path) -> None:
    source = write_every_type(tmp_path / "every.tar")
    with open(source, "rb") as file:
        copied(stage(file, tmp_path / "one", link=True), "only an archive that is a file")
    (tmp_path / "host").mkdir()
    copied(stage(tmp_path / "host", tmp_path / "two", link=True), "only an archive")
    assert not tree_state(tmp_path / "one").links


def test_another_file_system_is_copied_to(tmp_path: Path) -> None:
    source = write_every_type(tmp_path / "every.tar")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        assert os.stat(place).st_dev != tmp_path.stat().st_dev
        copied(stage(source, Path(place) / "tree", link=True), "cross-device link")


STAGE = "import sys, guestctl; print(guestctl.stage(*sys.argv[1:3], link=True).warnings)"


@pytest.mark.parametrize(
    ("argv", "env", "why"),
    [
        (["unshare", "--user", "--map-root-user"], {}, "root may write to any file"),
        ([], {"PATH": "/nonexistent"}, "bubblewrap is not installed"),
    ],
)
def test_without_confinement_it_copies(
    tmp_path: Path, argv: list[str], env: dict[str, str], why: str
) -> None:
    source = write_every_type(tmp_path / "every.tar")
    done = subprocess.run(
        [*argv, sys.executable, "-c", STAGE, source, tmp_path / "tree"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), **env},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    assert why in done.stdout.decode()
    assert not tree_state(tmp_path / "tree").links
    assert (tmp_path / "tree" / "dir" / "file").stat().st_nlink == 2  # a link of the archive's


def test_no_links_where_a_guest_writes(tmp_path: Path) -> None:
    source = write_every_type(tmp_path / "every.tar")
    for name in ("work", "base", "bare"):
        (tmp_path / name).mkdir()
    work = Share(tmp_path / "work", "g0", "mapped-file")
    with pytest.raises(TreeError, match="a guest may write to it"):
        stage(source, work, link=True)
    lock = flocked(share_lock(tmp_path / "work", Places.of_user().runtime))
    assert lock is not None
    with pytest.raises(TreeError, match="a guest may write to it"):
        stage(source, tmp_path / "work", link=True)
    os.close(lock)
    base = Share(tmp_path / "base", "g0", "mapped-file", writable=False, confined=True)
    assert not stage(source, base, link=True).warnings
    bare = Share(tmp_path / "bare", "g0", "mapped-file", writable=False)
    copied(stage(source, bare, link=True), "guest g0 has no namespaces")


def test_no_guest_gets_links_to_write_to(tmp_path: Path) -> None:
    linked(write_every_type(tmp_path / "every.tar"), tmp_path / "tree")
    text = dict.fromkeys(
        ("name", "hostname", "kernel", "initramfs", "root", "base", "scratch_folder", "cpu"), ""
    )
    spec = GuestSpec(
        **text,
        arch="armv5l",
        dtb=None,
        work=str(tmp_path / "tree"),
        memory=256,
        accelerator="tcg",
        namespaces=True,
    )
    (tmp_path / "run").mkdir(mode=0o700)
    with pytest.raises(ShareError, match="links into the cache"):
        start_guest(GuestDir(tmp_path / "g0"), spec, tmp_path / "run", Origin())


# --- several at once, and one killed ---------------------------------------------------------


def staging(source: Path, tree: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "guestctl", "virtfs", "stage", "--link"]
    return subprocess.Popen([*argv, source, tree], stderr=subprocess.PIPE)


def test_several_at_once_unpack_once(tmp_path: Path) -> None:
    source = big(tmp_path / "s.tar", 1000)
    trees = [tmp_path / f"t{number}" for number in range(3)]
    for process in [staging(source, tree) for tree in trees]:
        _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, b"")
    stage(source, tmp_path / "plain")
    one = inodes(trees[0])
    for tree in trees:
        same(tree, tmp_path / "plain")
        assert inodes(tree)["d7/f7"] == one["d7/f7"]
        assert inodes(tree)["d7/.virtfs_metadata/f7"] == one["d7/.virtfs_metadata/f7"]


def until(done: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    while not done():
        assert process.poll() is None
        time.sleep(0.002)


def halfway(cache: Path) -> Iterator[Path]:
    return cache.glob(".*/tree/d1/f*")


def test_killed_while_unpacking(tmp_path: Path, own_cache: Path) -> None:
    source = big(tmp_path / "s.tar")
    process = staging(source, tmp_path / "one")
    until(lambda: next(halfway(own_cache), None), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list(own_cache.glob("*/shape.json"))
    assert next(halfway(own_cache), None)
    linked(source, tmp_path / "one")
    assert next(halfway(own_cache), None) is None
    stage(source, tmp_path / "plain")
    same(tmp_path / "one", tmp_path / "plain")


def test_one_waits_for_another_that_unpacks(tmp_path: Path, own_cache: Path) -> None:
    source = archive(tmp_path / "s.tar", Member("f", data=b"x"))
    linked(source, tmp_path / "one")
    (lock,) = own_cache.glob("*.lock")
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = staging(source, tmp_path / "two")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


def test_killed_while_linking(tmp_path: Path, own_cache: Path) -> None:
    source = big(tmp_path / "s.tar")
    linked(source, tmp_path / "zero")
    before = frozen(own_cache)
    process = staging(source, tmp_path / "one")
    until((tmp_path / "one" / "d0").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert tree_state(tmp_path / "one").partial
    linked(source, tmp_path / "one")
    same(tmp_path / "one", tmp_path / "zero")
    assert frozen(own_cache) == before
