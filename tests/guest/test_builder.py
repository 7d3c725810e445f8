"""The builder in real guests: three small components, from an empty sysroot."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestctl import BuildError, Pool
from guestctl.builder.components import load_project
from guestctl.builder.events import Event, Outcome
from guestctl.builder.plan import Planner, Platform
from guestctl.builder.run import Builder
from guestctl.builder.sources import Sources
from guestctl.builder.store import LOG, TAR, Store
from guestctl.cli.build import make_builder
from guestctl.image import Image
from guestctl.places import Places
from guestctl.toolchain import install

LIBRARY = {
    "say.h": "long say(const char *text, long size);\n",
    "say.c": """\
#include "say.h"
long say(const char *text, long size)
{
	register long r0 __asm__("r0") = 1, r7 __asm__("r7") = 4;
	register const char *r1 __asm__("r1") = text;
	register long r2 __asm__("r2") = size;
	__asm__ volatile("svc 0" : "+r"(r0) : "r"(r1), "r"(r2), "r"(r7) : "memory");
	return r0;
}
""",
    "configure": """\
#!/bin/sh
[ "$1" = --build=arm-linux-gnueabi ] || exit 9
printf 'CFLAGS = -O2\\n' > config.mk
""",
    "Makefile": """\
include config.mk
libsay.a: say.o
	$(AR) rc $@ say.o
install: libsay.a
	mkdir -p $(DESTDIR)/usr/lib $(DESTDIR)/usr/include
	cp libsay.a $(DESTDIR)/usr/lib
	cp say.h $(DESTDIR)/usr/include
""",
}
PROGRAM = {
    "hello.c": """\
#include <say.h>
void _start(void)
{
	say("hello\\n", 6);
	register long r0 __asm__("r0") = 0, r7 __asm__("r7") = 1;
	__asm__ volatile("svc 0" : : "r"(r0), "r"(r7));
	__builtin_unreachable();
}
""",
}
STRATUM = """\
name: small
kind: stratum
chunks:
- name: say
  build-system: autotools
  tarball: {say}
  sha256: {say_digest}
  products: [{{artifact: -dev, include: [usr/include/.*]}}]
- name: hello
  tarball: {hello}
  sha256: {hello_digest}
  build-depends: [say]
  patches: [{{file: patches/loud.patch}}]
  build-commands:
  - cc -O2 -nostdlib -static -ffreestanding -o hello hello.c -lsay
  install-commands:
  - mkdir -p $DESTDIR/bin
  - cp hello $DESTDIR/bin/hello
  - chmod 4755 $DESTDIR/bin/hello
- name: files
  build-depends: [hello]
  install-commands:
  - '[ "$(/bin/hello)" = HELLO ]'
  - test -e /usr/include/say.h
  - '[ "$(hostname) $PWD $SOURCE_DATE_EPOCH" = "guestctl /build/files 1700000000" ]'
  - '[ "$(umask) $LC_ALL $BUILD $KBUILD_BUILD_VERSION" = "0022 C arm-linux-gnueabi 1" ]'
  - '[ "$CONFIG_SHELL" = /bin/sh ] && [ -x /bin/sh ]'
  - '[ "$(ls /sys/class/net)" = lo ] && [ -d /proc/self ] && [ -c /dev/null ]'
  - mkdir $DESTDIR/etc
  - echo {word} > $DESTDIR/etc/word
  - ls / > $DESTDIR/etc/root
  devices:
  - {{filename: /dev/console, type: c, major: 5, minor: 1, permissions: '0620', gid: 5}}
"""
PATCH = """\
--- a/hello.c
+++ b/hello.c
@@ -2,3 +2,3 @@
 void _start(void)
 {
-	say("hello\\n", 6);
+	say("HELLO\\n", 6);
"""

Make = Callable[..., tuple[Builder, list[Event]]]


def tarball(path: Path, top: str, files: dict[str, str]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(text)
            entry.mode = 0o755 if name == "configure" else 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builder")


@pytest.fixture(scope="module")
def make(folder: Path, armv5l_image: Image) -> Make:
    say, hello = folder / "say-1.0.tar.gz", folder / "hello.tar.gz"
    values = {
        "say": say,
        "say_digest": tarball(say, "say-1.0", LIBRARY),
        "hello": hello,
        "hello_digest": tarball(hello, ".", PROGRAM),
    }

    def made(data: Path, word: str = "first") -> tuple[Builder, list[Event]]:
        definitions = data / "definitions"
        (definitions / "patches").mkdir(parents=True, exist_ok=True)
        (definitions / "patches" / "loud.patch").write_text(PATCH)
        (definitions / "small.morph").write_text(STRATUM.format(word=word, **values))
        store, sources = Store(data), Sources(data / "sources", {}, {})
        project = load_project(definitions, "armv5l")
        platform = Platform("armv5l", "arm-linux-gnueabi", {"image": armv5l_image.id})
        events: list[Event] = []
        planner = Planner(project, platform, store, sources)
        return Builder(planner, store, sources, data, listener=events.append), events

    return made


@pytest.fixture(scope="module")
def built(folder: Path, make: Make, places: Places) -> tuple[Builder, Outcome]:
    builder, _events = make(folder / "data")
    return builder, builder.build(["small"], lambda _work: Pool("armv5l", 1, places=places)).check()


def listing(path: Path) -> list[str]:
    command = ["tar", "--zstd", "--numeric-owner", "-tvf", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_three_components_are_built_from_nothing(built: tuple[Builder, Outcome]) -> None:
    _builder, outcome = built
    assert outcome.built == ["say", "hello", "files"]
    lines = listing(outcome.artifacts["files"].tar)
    assert any(line.startswith("crw--w---- 0/5") and "5,1" in line for line in lines), lines
    lines = listing(outcome.artifacts["hello"].tar)
    assert any(line.startswith("-rwsr-xr-x 0/0") for line in lines), lines


def test_what_was_lent_is_in_no_artifact(built: tuple[Builder, Outcome]) -> None:
    names = {
        entry["path"]
        for artifact in built[1].artifacts.values()
        for entry in artifact.manifest["files"]
    }
    assert not any("tools" in name or name.endswith("bin/sh") for name in names)


def test_the_manifest_tells_the_whole_story(built: tuple[Builder, Outcome]) -> None:
    facts = built[1].artifacts["hello"].manifest
    # Nothing was copied that could be linked.
    assert b"copied" not in gzip.decompress(built[1].artifacts["hello"].log.read_bytes())
    assert {"stage", "prepare", "build", "install", "collect"} <= set(facts["seconds"])
    assert facts["spdx"]["spdxVersion"] == "SPDX-2.3"
    entry = next(each for each in facts["files"] if each["path"].endswith("bin/hello"))
    assert (entry["mode"], entry["uid"]) == ("4755", 0)


def test_only_the_leaf_is_built_again_and_bytes_are_the_same_elsewhere(
    built: tuple[Builder, Outcome], folder: Path, make: Make, places: Places
) -> None:
    builder, _events = make(folder / "data", word="second")
    assert builder.planner.missing(["small"]) == ["files"]
    again, _events = make(folder / "elsewhere")
    with Pool("armv5l", 1, places=places) as pool:
        outcome = again.build(["hello"], lambda _work: contextlib.nullcontext(pool)).check()
        second = builder.build(["small"], lambda _work: contextlib.nullcontext(pool))
    assert second.built == ["files"]
    for name in ("say", "hello"):
        assert outcome.artifacts[name].tar.read_bytes() == built[1].artifacts[name].tar.read_bytes()


def test_a_failure_says_which_command_and_stops_what_needs_it(
    folder: Path, make: Make, places: Places
) -> None:
    builder, events = make(folder / "failing")
    path = folder / "failing" / "definitions" / "small.morph"
    path.write_text(path.read_text().replace("-lsay\n", "-lsay -lmissing\n"))
    builder, events = _again(builder, path.parent, folder / "failing", events)
    outcome = builder.build(["small"], lambda _work: Pool("armv5l", 1, places=places))
    assert outcome.built == ["say"]
    assert outcome.stopped == ["files"]
    with pytest.raises(BuildError, match=r"hello: build-commands: cc .* status 1"):
        outcome.check()
    assert outcome.bare == {"say"}
    assert b"cannot find -lmissing" in outcome.logs["hello"].read_bytes()
    assert not list((folder / "failing" / "scratch").iterdir())


def _again(
    builder: Builder, definitions: Path, data: Path, events: list[Event]
) -> tuple[Builder, list[Event]]:
    planner = Planner(
        load_project(definitions, "armv5l"),
        builder.planner.platform,
        builder.store,
        builder.sources,
    )
    return Builder(planner, builder.store, builder.sources, data, listener=events.append), events


COMPILER = """\
name: compiler
kind: stratum
chunks:
- name: gcc
  description: the same gcc, built anew as far as anybody can tell
  install-commands:
  - cd $DESTDIR; mkdir -p usr/bin usr/include usr/lib/gcc/arm-linux-gnueabi/12
  - cp /tools/bin/gcc-12 $DESTDIR/usr/bin/gcc
  - cp /tools/lib/gcc/arm-linux-gnueabi/12/cc1 $DESTDIR/usr/lib/gcc/arm-linux-gnueabi/12
  - echo >>$DESTDIR/usr/lib/gcc/arm-linux-gnueabi/12/cc1
- name: before
  build-commands: ['echo "int x;" >x.c', gcc -c x.c]
  install-commands: [mv x.o $DESTDIR]
- name: after
  build-depends: [gcc]
  build-commands: ['echo "int x;" >x.c', gcc -c x.c]
  install-commands: [mv x.o $DESTDIR]
"""


def test_a_compiler_that_was_just_built_is_the_guests_own_and_the_ledger_says_so(
    tmp_path: Path, armv5l_image: Image, places: Places
) -> None:
    install("armv5l", cache_dir=places.cache)
    builder = defined(tmp_path, armv5l_image, "compiler", COMPILER, lambda _event: None)
    outcome = builder.build(["compiler"], lambda _work: Pool("armv5l", 1, places=places)).check()
    before, after = (outcome.artifacts[name].manifest for name in ("before", "after"))
    assert (before["ledger"], before["local"]) == ({"offload": 1}, {})
    assert after["ledger"] == {"guest": 1}
    ((reason, count),) = after["local"].items()
    assert count == 1
    assert reason.startswith("/usr/bin/gcc: the guest has gcc")
    objects = [
        {entry["path"]: entry.get("sha256") for entry in facts["files"]}
        for facts in (before, after)
    ]
    assert objects[0] == objects[1]


@pytest.mark.parametrize(
    ("offload", "why"), [("auto", "1 of 1 calls ran in the guest, 50 % may"), ("off", "is off")]
)
def test_a_build_fails_that_the_guest_compiles_more_of_than_it_may(
    tmp_path: Path, armv5l_image: Image, places: Places, offload: str, why: str
) -> None:
    install("armv5l", cache_dir=places.cache)
    builder = defined(tmp_path, armv5l_image, "compiler", COMPILER, lambda _event: None)
    builder.max_local = 50.0
    with Pool("armv5l", 1, places=places, offload=offload) as pool:
        outcome = builder.build(["after"], lambda _work: contextlib.nullcontext(pool))
    assert outcome.failed[{"auto": "after", "off": "gcc"}[offload]].endswith(why), outcome.failed


SLOW = """\
name: slow
kind: stratum
chunks:
- name: one
  build-commands: [sleep 1]
  install-commands: [mkdir $DESTDIR/usr, echo one > $DESTDIR/usr/one]
- name: two
  build-depends: [one]
  build-commands: [sleep 1]
  install-commands: [mkdir $DESTDIR/usr, cat /usr/one > $DESTDIR/usr/two]
- name: three
  build-depends: [two]
  build-commands: [sleep 1]
  install-commands: [mkdir $DESTDIR/usr, cat /usr/two > $DESTDIR/usr/three]
"""


def slow(data: Path, image: Image, listener: Callable[[Event], None], text: str = SLOW) -> Builder:
    return defined(data, image, "slow", text, listener)


def defined(
    data: Path, image: Image, name: str, text: str, listener: Callable[[Event], None]
) -> Builder:
    definitions = data / "definitions"
    definitions.mkdir(parents=True, exist_ok=True)
    (definitions / f"{name}.morph").write_text(text)
    store, sources = Store(data), Sources(data / "sources", {}, {})
    platform = Platform("armv5l", "arm-linux-gnueabi", {"image": image.id})
    planner = Planner(load_project(definitions, "armv5l"), platform, store, sources)
    return Builder(planner, store, sources, data, listener=listener)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, armv5l_image: Image, places: Places
) -> dict[str, bytes]:
    """The slow artifacts as they are when nothing happens."""
    builder = slow(tmp_path_factory.mktemp("quiet"), armv5l_image, lambda _event: None)
    outcome = builder.build(["slow"], lambda _work: Pool("armv5l", 1, places=places)).check()
    return contents(outcome)


def contents(outcome: Outcome) -> dict[str, bytes]:
    return {name: artifact.tar.read_bytes() for name, artifact in outcome.artifacts.items()}


def test_a_guest_killed_in_the_middle_of_each_build_changes_nothing(
    tmp_path: Path, armv5l_image: Image, places: Places, undisturbed: dict[str, bytes]
) -> None:
    killed: list[str] = []
    homes: dict[str, str] = {}
    with Pool("armv5l", 1, places=places) as pool:

        def strike(event: Event) -> None:
            if event.kind == "start":
                homes[event.name] = event.guest
            if event.kind == "step" and event.text == "build" and event.name not in killed:
                killed.append(event.name)
                pids = {guest["name"]: guest["qemu_pid"] for guest in pool.status()}
                pid = pids[homes[event.name]]
                threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()

        struck = slow(tmp_path / "struck", armv5l_image, strike)
        outcome = struck.build(["slow"], lambda _work: contextlib.nullcontext(pool)).check()
    assert killed == ["one", "two", "three"]
    assert outcome.built == ["one", "two", "three"]
    assert contents(outcome) == undisturbed


def test_a_builder_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, armv5l_image: Image, places: Places, undisturbed: dict[str, bytes]
) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from guestctl import Pool, image
from guestctl.places import Places
from guestctl.toolchain import install
from tests.guest.test_builder import slow
made = image.load("armv5l", cache_dir=Path({str(places.cache)!r}))
def strike(event):
    if (event.name, event.text) == (sys.argv[1], "build"):
        os.kill(os.getpid(), signal.SIGKILL)
slow(Path({str(tmp_path)!r}), made, strike).build(["slow"], lambda _work: Pool("armv5l", 1))
"""
    for victim in ("one", "two"):
        done = subprocess.run([sys.executable, "-c", code, victim], check=False, timeout=120)
        assert done.returncode == -signal.SIGKILL
    builder = slow(tmp_path, armv5l_image, lambda _event: None)
    assert builder.planner.missing(["slow"]) == ["two", "three"]
    outcome = builder.build(["slow"], lambda _work: Pool("armv5l", 1, places=places)).check()
    assert (outcome.cached, outcome.built) == (["one"], ["two", "three"])
    assert contents(outcome) == undisturbed
    assert not [path for path in (tmp_path / "artifacts").iterdir() if path.name.startswith(".")]


def test_an_interrupted_build_ends_cleanly_and_a_second_run_continues(
    tmp_path: Path, armv5l_image: Image, places: Places
) -> None:
    def strike(event: Event) -> None:
        if (event.name, event.text) == ("two", "build"):
            threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()

    one, two = SLOW.split("- name: two")
    endless = f"{one}- name: two{two.replace('sleep 1', 'sleep 1000')}"
    builder = slow(tmp_path, armv5l_image, strike, endless)
    with Pool("armv5l", 1, places=places) as pool:
        with pytest.raises(KeyboardInterrupt):
            builder.build(["slow"], lambda _work: contextlib.nullcontext(pool))
        assert "ready" in {guest["state"] for guest in pool.status()}
    assert builder.planner.missing(["slow"]) == ["two", "three"]
    assert not list(builder.scratch.iterdir())


def test_two_builders_on_one_cache_build_nothing_twice(
    tmp_path: Path, armv5l_image: Image, places: Places
) -> None:
    events: list[Event] = []
    builders = [slow(tmp_path, armv5l_image, events.append) for _ in range(2)]
    with Pool("armv5l", 2, places=places) as pool, ThreadPoolExecutor(2) as threads:

        def build(builder: Builder) -> Outcome:
            return builder.build(["slow"], lambda _work: contextlib.nullcontext(pool)).check()

        outcomes = list(threads.map(build, builders))
    started = [event.name for event in events if event.kind == "start"]
    assert sorted(started) == ["one", "three", "two"]
    for outcome in outcomes:
        assert set(outcome.artifacts) == {"one", "two", "three"}


def test_nothing_to_do_for_a_hundred_components_takes_less_than_two_seconds(
    tmp_path: Path, armv5l_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the processor's time, which does not depend on what else this machine has to do."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    needs = ["", *(f"n{number // 2}" for number in range(1, 100))]
    rows = [f"- {{name: n{n}, build-depends: [{need}]}}\n" for n, need in enumerate(needs)]
    (tmp_path / "all.morph").write_text("name: all\nkind: stratum\nchunks:\n" + "".join(rows))
    builder = make_builder(tmp_path, "armv5l")
    for name in builder.planner.order:
        for file in (TAR, LOG):
            (tmp_path / file).write_bytes(os.urandom(1_000_000))
        entry = {"type": "file", "mode": "0644", "uid": 0, "gid": 0, "size": 7, "sha256": "0" * 64}
        files = [{"path": f"usr/share/{name}/{number}", **entry} for number in range(300)]
        facts = {"name": name, "arch": "armv5l", "seconds": {"build": 1.0}, "files": files}
        put = {file: tmp_path / file for file in (TAR, LOG)}
        builder.store.put(builder.planner.key(name), put, facts)
    words = ["build", str(tmp_path), "all", "--arch", "armv5l", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "guestctl", *words], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        answer = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    assert status == 0
    assert (len(answer["cached"]), answer["built"]) == (100, [])
    assert usage.ru_utime + usage.ru_stime < 2


def test_the_example_builder_builds(folder: Path, make: Make, armv5l_image: Image) -> None:
    make(folder / "example")
    cc = "cc -O2 -nostdlib -static -ffreestanding"
    packages = [
        {
            "name": "hello",
            "tarball": str(folder / "hello.tar.gz"),
            "needs": ["say"],
            "commands": [
                f"{cc} -o hello hello.c -lsay",
                "mkdir -p $DESTDIR/bin",
                "cp hello $DESTDIR/bin",
            ],
        },
        {
            "name": "say",
            "tarball": str(folder / "say-1.0.tar.gz"),
            "needs": [],
            "commands": [
                "cd say-1.0; : > config.mk; make SHELL=/tools/bin/sh DESTDIR=$DESTDIR install"
            ],
        },
    ]
    out = folder / "out"
    out.mkdir()
    (folder / "recipe.json").write_text(json.dumps({"arch": "armv5l", "packages": packages}))
    example = Path(__file__).parents[2] / "examples" / "builder.py"
    done = subprocess.run(
        [sys.executable, str(example), str(folder / "recipe.json"), str(out)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout == "say is built\nhello is built\n", done.stderr
    listed = subprocess.run(["tar", "-tf", str(out / "hello.tar")], capture_output=True, check=True)
    assert b"bin/hello" in listed.stdout


def test_the_command_line_builds_and_explains(
    folder: Path, make: Make, armv5l_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder / "line")
    definitions = str(folder / "line" / "definitions")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "line" / "data"))

    def guestctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "guestctl", *words],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    build = ("build", definitions, "say", "--arch", "armv5l")
    assert guestctl(*build, "--explain").stdout == "say: it was never built\n"
    done = guestctl(*build, "--json")
    assert json.loads(done.stdout)["built"] == ["say"], done.stderr
    assert guestctl(*build, "--explain").stdout == "say: it is built already\n"
    page = folder / "line" / "report.html"
    again = guestctl(*build, "--json", "--report", str(page))
    assert json.loads(again.stdout)["cached"] == ["say"]
    assert "say: build" in page.read_text()
    assert "./configure --build" in guestctl(*build, "--log").stdout
    shown = guestctl("artifact", "show", "say").stdout
    assert "libsay.a" in shown
    assert "parts: say-dev, say\n" in shown
    for part, tree, entries in ((), "tree", 6), (("--part", "say-dev"), "dev", 4):
        taken = guestctl("artifact", "extract", "say", str(folder / "line" / tree), *part)
        assert taken.stdout == f"say: {entries} entries\n", taken.stderr
    refused = guestctl("artifact", "extract", "say", str(folder / "line" / "no"), "--part", "doc")
    assert "hint: its parts are say-dev, say" in refused.stderr
    assert guestctl("artifact", "remove", "say").returncode == 0
    missing = guestctl("artifact", "show", "say")
    assert missing.returncode == 1
    assert missing.stderr == "guestctl: there is no artifact 'say'\nhint: guestctl artifact list\n"
