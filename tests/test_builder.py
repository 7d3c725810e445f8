"""The builder without guests: graph, keys, schedule, store, sources, plan."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestctl.builder.components import read_project
from guestctl.builder.events import Outcome
from guestctl.builder.graph import closure, in_order, longest_paths
from guestctl.builder.keys import Inputs, differences, inputs_of_all
from guestctl.builder.manifest import files_of
from guestctl.builder.plan import Planner, Platform
from guestctl.builder.products import Rules, split
from guestctl.builder.schedule import Schedule
from guestctl.builder.sources import Sources
from guestctl.builder.store import LOG, TAR, Store
from guestctl.definitions import Chunk, Product
from guestctl.errors import BuildError, DefinitionError, ImageError

PLATFORM = Platform("armv5l", "arm-linux-gnueabi", {"image": "0123"})
TEXT = """\
name: all
kind: stratum
chunks:
- {name: a, build-commands: [make a]}
- {name: b, build-depends: [a]}
- {name: c, build-depends: [a]}
- {name: d, build-depends: [b, c]}
- {name: e}
"""


def inputs(text: str = TEXT, platform: Mapping[str, str] = PLATFORM.facts) -> dict[str, Inputs]:
    project = read_project({"all.morph": text}, "armv5l")
    return inputs_of_all(project.components, "armv5l", platform, lambda _file: "00")


# --- graph ----------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    names = [f"n{number:02}" for number in range(draw(st.integers(1, 12)))]
    return {
        name: draw(st.lists(st.sampled_from(names[:number]), max_size=3)) if number else []
        for number, name in enumerate(names)
    }


@given(graphs())
def test_order_puts_needs_first(graph: dict[str, list[str]]) -> None:
    order = in_order(graph)
    assert sorted(order) == sorted(graph)
    for name, needs in graph.items():
        assert all(order.index(need) < order.index(name) for need in needs)


def test_a_cycle_is_named() -> None:
    with pytest.raises(DefinitionError, match="b → c → b"):
        in_order({"a": [], "b": ["a", "c"], "c": ["b"], "d": ["c"]})


def test_closure_and_longest_paths() -> None:
    graph = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []}
    assert closure(graph, ["b"]) == {"a", "b"}
    seconds = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 1.0, "e": 3.0}
    assert longest_paths(graph, seconds) == {"a": 7.0, "b": 6.0, "c": 3.0, "d": 1.0, "e": 3.0}


# --- keys -----------------------------------------------------------------------------------------


def changed(text: str) -> set[str]:
    before, after = inputs(), inputs(text)
    return {name for name in before if before[name].key != after[name].key}


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("make a", "make aa", {"a", "b", "c", "d"}),
        ("{name: b,", "{name: b, prefix: /opt,", {"b", "d"}),
        ("{name: d,", "{name: d, environment: {X: '1'},", {"d"}),
        ("{name: e}", "{name: e, description: another}", set()),
        ("kind: stratum", "kind: stratum\ndescription: another", set()),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(
    old: str, new: str, names: set[str]
) -> None:
    assert changed(TEXT.replace(old, new)) == names


def test_the_platform_is_in_every_key() -> None:
    before, after = inputs(), inputs(platform={"image": "4567"})
    assert all(before[name].key != after[name].key for name in before)


def test_differences_are_told_in_words() -> None:
    old = dataclasses.asdict(inputs()["b"])
    new = inputs(TEXT.replace("make a", "make aa").replace("{name: b,", "{name: b, prefix: /opt,"))
    assert differences(old, new["b"]) == ["definition: prefix changed", "sysroot: a changed"]


# --- schedule -------------------------------------------------------------------------------------


def test_the_longest_path_goes_first() -> None:
    graph = {"a": [], "b": [], "c": ["b"]}
    schedule = Schedule(graph, {"a": 5.0, "b": 1.0, "c": 9.0})
    assert schedule.start() == "b"
    assert schedule.start() == "a"
    assert schedule.start() is None
    schedule.done("b")
    assert schedule.start() == "c"


def test_a_failure_stops_what_depends_on_it_only() -> None:
    schedule = Schedule({"a": [], "b": ["a"], "c": ["b"], "d": []}, dict.fromkeys("abcd", 1.0))
    assert schedule.start() == "a"
    assert schedule.failed("a") == ["b", "c"]
    assert schedule.start() == "d"
    schedule.done("d")
    assert schedule.ended


def test_what_was_lost_waits_again() -> None:
    schedule = Schedule({"a": [], "b": ["a"]}, dict.fromkeys("ab", 1.0))
    assert schedule.start() == "a"
    schedule.lost("a")
    assert schedule.start() == "a"
    schedule.done("a")
    assert schedule.start() == "b"


def test_the_rest_is_what_is_left_of_the_longest_path_or_of_all_work() -> None:
    schedule = Schedule({"a": [], "b": ["a"], "c": []}, {"a": 10.0, "b": 5.0, "c": 30.0})
    assert schedule.rest(1, {}) == 45.0
    assert schedule.rest(4, {}) == 30.0
    assert [schedule.start(), schedule.start()] == ["c", "a"]
    assert schedule.rest(4, {"c": 25.0, "a": 4.0}) == 11.0
    # Longer than last time: then nothing of it is left, as far as anybody knows.
    assert schedule.rest(1, {"c": 60.0}) == 15.0


@given(graphs(), st.integers(1, 4), st.randoms())
def test_every_schedule_ends_and_keeps_the_order(
    graph: dict[str, list[str]], guests: int, chance: random.Random
) -> None:
    schedule = Schedule(graph, dict.fromkeys(graph, 1.0))
    running: list[str] = []
    done: set[str] = set()
    losses = 10
    while True:
        while len(running) < guests and (name := schedule.start()) is not None:
            assert set(graph[name]) <= done
            running.append(name)
        if not running:
            break
        name = running.pop(chance.randrange(len(running)))
        if losses and chance.random() < 0.3:
            losses -= 1
            schedule.lost(name)
        else:
            schedule.done(name)
            done.add(name)
    assert schedule.ended
    assert done == set(graph)


# --- store ----------------------------------------------------------------------------------------


def put(store: Store, folder: Path, key: str, name: str = "a", size: int = 100) -> None:
    for file in (TAR, LOG):
        (folder / file).write_bytes(b"x" * size)
    files = {file: folder / file for file in (TAR, LOG)}
    store.put(key, files, {"name": name, "arch": "armv5l", "seconds": {"build": 2.0}})


KEY = "0123456789abcdef" * 4


def test_what_is_put_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.get(KEY) is None
    put(store, tmp_path, KEY)
    found = store.get(KEY)
    assert found is not None
    assert found.tar.read_bytes() == b"x" * 100
    assert [each.key for each in store.all()] == [KEY]
    assert store.find("a").key == store.find(KEY[:8]).key == KEY


@pytest.mark.parametrize("file", [TAR, LOG, "manifest.json", "sums"])
def test_a_flipped_bit_is_found(tmp_path: Path, file: str) -> None:
    store = Store(tmp_path / "store")
    put(store, tmp_path, KEY)
    path = tmp_path / "store" / "artifacts" / KEY / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert store.get(KEY) is None
    assert store.peek(KEY) is None


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    keys = [f"{number}" * 64 for number in range(4)]
    for number, key in enumerate(keys):
        put(store, tmp_path, key, size=1000)
        os.utime(tmp_path / "store" / "artifacts" / key, (number, number))
    gone = store.collect_garbage(store.all()[0].size * 2, keep=frozenset({keys[0]}))
    assert [each.key for each in gone] == [keys[1], keys[2]]
    assert {each.key for each in store.all()} == {keys[0], keys[3]}


def test_what_a_build_may_read_is_not_collected(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    old, new = "0" * 64, "1" * 64
    for key in (old, new):
        put(store, tmp_path, key)
    os.utime(tmp_path / "store" / "artifacts" / old, (0, 0))
    with Store(tmp_path / "store").in_use():
        assert [each.key for each in store.collect_garbage(0)] == [old]
    assert [each.key for each in store.collect_garbage(0)] == [new]


def test_only_one_builds_and_the_other_finds_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    waited = threading.Event()
    found: list[bool] = []

    def other() -> None:
        with Store(tmp_path / "store").building(KEY, lambda: False, waited.set) as ours:
            found.append(ours)

    with store.building(KEY, lambda: False, lambda: None) as ours:
        assert ours
        thread = threading.Thread(target=other)
        thread.start()
        assert waited.wait(10)
        put(store, tmp_path, KEY)
    thread.join(10)
    assert found == [False]


def test_a_killed_builder_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal, sys
from guestctl.builder import store as module
folder = pathlib.Path({str(tmp_path)!r})
store = module.Store(folder / "store")
(folder / module.TAR).write_bytes(b"x" * 1000)
module._flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)
with store.building({KEY!r}, lambda: False, lambda: None):
    store.put({KEY!r}, {{module.TAR: folder / module.TAR}}, {{}})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    store = Store(tmp_path / "store")
    assert store.all() == []
    with store.building(KEY, lambda: False, lambda: None) as ours:
        assert ours


# --- sources --------------------------------------------------------------------------------------


def sources(tmp_path: Path, **options: bool) -> Sources:
    return Sources(
        tmp_path / "sources", {"local": f"{tmp_path}/", "mine": f"{tmp_path}/%s.tar"}, {}, **options
    )


def test_a_tarball_is_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"data")
    digest = hashlib.sha256(b"data").hexdigest()
    chunk = Chunk(name="a", tarball="local:a.tar", sha256=digest)
    path = sources(tmp_path).tarball(chunk)
    (tmp_path / "a.tar").unlink()
    assert sources(tmp_path).tarball(chunk) == path
    assert path.read_bytes() == b"data"


def test_an_alias_may_say_where_the_rest_goes(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"data")
    chunk = Chunk(name="a", tarball="mine:a", sha256=hashlib.sha256(b"data").hexdigest())
    assert sources(tmp_path).tarball(chunk).read_bytes() == b"data"


def test_what_a_scheme_cannot_get_is_told_with_its_place(tmp_path: Path) -> None:
    def nothing(address: str) -> Path:
        raise ImageError(f"the archive has no {address}", hint="look elsewhere")

    chunk = Chunk(name="a", tarball="deb:a", sha256="ab" * 32, place="a.morph:1")
    with pytest.raises(BuildError, match=r"a.morph:1: a: deb:a: the archive has no") as caught:
        Sources(tmp_path, {}, {"deb": nothing}).tarball(chunk)
    assert caught.value.hint == "look elsewhere"


def test_another_tarball_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"data")
    chunk = Chunk(name="a", tarball=str(tmp_path / "a.tar"), sha256="ab" * 32, place="a.morph:1")
    with pytest.raises(BuildError, match=r"a.morph:1: a: .* has another SHA-256"):
        sources(tmp_path).tarball(chunk)
    assert not list((tmp_path / "sources" / "sha256").iterdir())


def test_offline_needs_the_cache(tmp_path: Path) -> None:
    chunk = Chunk(name="a", tarball="https://example.org/a.tar", sha256="ab" * 32)
    with pytest.raises(BuildError, match="offline"):
        sources(tmp_path, offline=True).tarball(chunk)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "one").write_text("1")
    (folder / "link").symlink_to("one")
    (folder / ".gitattributes").write_text("one export-ignore\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_a_commit_is_checked_out_whole(tmp_path: Path, repository: Path) -> None:
    chunk = Chunk(name="a", repo="local:repository", ref="main")
    store = sources(tmp_path)
    commit = store.commit(chunk)
    assert commit == git(repository, "rev-parse", "HEAD")
    with store.checkout(chunk, commit, tmp_path / "scratch") as folder:
        assert (folder / "one").read_text() == "1"
        assert os.readlink(folder / "link") == "one"
        assert not (folder / ".git").exists()
        when = int(git(repository, "show", "-s", "--format=%ct", "HEAD"))
        assert {path.lstat().st_mtime for path in folder.iterdir()} == {when}
    assert not list((tmp_path / "scratch").iterdir())


def test_a_branch_that_moves_is_followed_but_not_offline(tmp_path: Path, repository: Path) -> None:
    chunk = Chunk(name="a", repo="local:repository", ref="main")
    first = sources(tmp_path).commit(chunk)
    (repository / "two").write_text("2")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "two")
    assert sources(tmp_path, offline=True).commit(chunk) == first
    assert sources(tmp_path).commit(chunk) == git(repository, "rev-parse", "HEAD")


def test_a_ref_that_is_not_there(tmp_path: Path, repository: Path) -> None:
    chunk = Chunk(name="a", repo="local:repository", ref="nowhere", place="a.morph:1")
    with pytest.raises(BuildError, match=r"a.morph:1: a: .* has no 'nowhere'"):
        sources(tmp_path).commit(chunk)


# --- plan -----------------------------------------------------------------------------------------


@pytest.fixture
def planner(tmp_path: Path) -> Callable[[str], Planner]:
    def make(text: str) -> Planner:
        project = read_project({"all.morph": text}, "armv5l")
        return Planner(project, PLATFORM, Store(tmp_path / "store"), sources(tmp_path))

    return make


def build_all(tmp_path: Path, planner: Planner) -> None:
    store = Store(tmp_path / "store")
    for name in planner.missing(planner.order):
        for file in (TAR, LOG):
            (tmp_path / file).write_bytes(name.encode())
        facts = {
            "name": name,
            "arch": "armv5l",
            "inputs": dataclasses.asdict(planner.inputs[name]),
            "seconds": {"build": 1.0},
        }
        store.put(planner.key(name), {file: tmp_path / file for file in (TAR, LOG)}, facts)


def test_only_what_is_missing_is_planned(tmp_path: Path, planner: Callable[[str], Planner]) -> None:
    first = planner(TEXT)
    assert first.missing(["b"]) == ["a", "b"]
    build_all(tmp_path, first)
    assert first.missing(["all"]) == []
    second = planner(TEXT.replace("{name: b,", "{name: b, prefix: /opt,"))
    assert second.missing(["all"]) == ["b", "d"]
    assert second.explain("b") == ["definition: prefix changed"]
    assert second.explain("d") == ["sysroot: b changed"]
    assert second.explain("c") == ["it is built already"]


def test_a_damaged_artifact_that_would_be_read_is_built_again(
    tmp_path: Path, planner: Callable[[str], Planner]
) -> None:
    first = planner(TEXT)
    build_all(tmp_path, first)
    (tmp_path / "store" / "artifacts" / first.key("a") / TAR).write_bytes(b"damaged")
    second = planner(TEXT.replace("{name: b,", "{name: b, prefix: /opt,"))
    assert second.missing(["b"]) == ["a", "b"]


def test_patches_are_files_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "outside.patch").write_text("")
    text = "{name: a, kind: chunk, patches: [{file: ../outside.patch}]}"
    project = dataclasses.replace(
        read_project({"a.morph": text}, "armv5l"), folder=tmp_path / "project"
    )
    with pytest.raises(DefinitionError, match="no such file"):
        Planner(project, PLATFORM, Store(tmp_path / "store"), sources(tmp_path))


def test_nothing_to_do_is_quick_for_a_hundred_components(
    tmp_path: Path, planner: Callable[[str], Planner]
) -> None:
    """A bound so wide that only another order of growth breaks it."""
    rows = [
        f"- {{name: n{number}, build-depends: [{'n' + str(number // 2) if number else ''}]}}"
        for number in range(100)
    ]
    made = planner("name: all\nkind: stratum\nchunks:\n" + "\n".join(rows))
    build_all(tmp_path, made)
    begin = time.monotonic()
    assert made.missing(["all"]) == []
    assert time.monotonic() - begin < 30


def test_the_manifest_names_files_with_owner_mode_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("usr/include", tarfile.DIRTYPE), ("usr/include/a.h", tarfile.REGTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid = kind, 0o4755, 7
            data = b"text" if kind == tarfile.REGTYPE else b""
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    folder, file = files_of(path, Rules("a", [Product("-dev", ("usr/include/.*",))]))
    assert folder == {
        "path": "usr/include",
        "type": "folder",
        "mode": "4755",
        "uid": 7,
        "gid": 0,
        "product": "a",
    }
    assert file == {
        "path": "usr/include/a.h",
        "type": "file",
        "mode": "4755",
        "uid": 7,
        "gid": 0,
        "size": 4,
        "sha256": hashlib.sha256(b"text").hexdigest(),
        "product": "a-dev",
    }


@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_artifact_is_split_into_its_parts(tmp_path: Path, prefix: str) -> None:
    whole = tmp_path / "whole.tar"
    long = "usr/share/doc/" + "n" * 120
    with tarfile.open(whole, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link in (
            ("usr", tarfile.DIRTYPE, ""),
            ("usr/bin", tarfile.DIRTYPE, ""),
            ("usr/bin/a", tarfile.REGTYPE, ""),
            ("usr/include", tarfile.DIRTYPE, ""),
            ("usr/include/a.h", tarfile.REGTYPE, ""),
            ("usr/include/b.h", tarfile.LNKTYPE, "usr/bin/a"),
            ("usr/share", tarfile.DIRTYPE, ""),
            ("usr/share/doc", tarfile.DIRTYPE, ""),
            (long, tarfile.REGTYPE, ""),
            ("var", tarfile.DIRTYPE, ""),
        ):
            entry = tarfile.TarInfo(prefix + name)
            entry.type, entry.mode, entry.uid = kind, 0o755, 7
            entry.linkname = link and prefix + link
            entry.mtime = 5
            data = name.encode() * 100 if kind == tarfile.REGTYPE else b""
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    wanted = [Product("-dev", ("usr/include/.*",)), Product("docs", (".*/doc/.*", "never"))]
    rules = Rules("a", wanted)
    assert rules.parts == ("a-dev", "docs", "a")
    found = split(whole, rules, tmp_path, 3)
    names = {}
    for part, path in found.items():
        command = ["tar", "--zstd", "-tvf", str(path), "--numeric-owner"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = [line for line in lines.splitlines() if not line.endswith(" ./")]
        assert all("7/0" in row for row in rows)
        names[part] = [row.split()[5].removeprefix("./").rstrip("/") for row in rows]
    assert names == {
        "a-dev": ["usr", "usr/include", "usr/include/a.h"],
        "docs": ["usr", "usr/share", "usr/share/doc", long],
        "a": ["usr", "usr/bin", "usr/bin/a", "usr/include", "usr/include/b.h", "usr/share",
              "usr/share/doc", "var"],
    }  # fmt: skip
    assert not list(tmp_path.glob("*/"))


def test_products_are_checked_when_they_are_read() -> None:
    text = "{name: a, kind: chunk, products: [{artifact: -dev, include: ['(']}]}"
    with pytest.raises(DefinitionError, match=r"a.morph:1: a: products: -dev: .* no regular expr"):
        read_project({"a.morph": text}, "armv5l")
    rules = "split-rules: {chunk: [{artifact: -dev, include: [usr/include/.*]}]}"
    project = read_project({"a.morph": "{name: a, kind: chunk}", "DEFAULTS": rules}, "armv5l")
    chunk = project.components["a"].chunk
    assert Rules("a", chunk.products).of("usr/include/a.h") == "a-dev"


# --- how a build ended ----------------------------------------------------------------------------


def test_who_had_no_c_library_is_told_so() -> None:
    logs = {"tool": Path("tool.log"), "library": Path("library.log")}
    for failed, said in (("tool", True), ("library", False)):
        outcome = Outcome(failed={failed: "configure: status 77"}, logs=logs, bare={"tool"})
        with pytest.raises(BuildError) as caught:
            outcome.check()
        assert f"the log is {failed}.log" in caught.value.hint
        assert ("without a C library" in caught.value.hint) == said
