"""Compile hosts: a real distccd on loopback, and the toolchain's own bytes from it."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestctl import image
from guestctl.cli.main import program
from guestctl.errors import HostLacks, OffloadError, UsageError
from guestctl.offload import CompileHost, HostBook, lzo, machines, parse_host
from guestctl.offload.farside import examine
from guestctl.offload.machines import Machines
from guestctl.offload.messages import Request
from guestctl.offload.relay import renamed, split_call
from guestctl.offload.slots import Slots
from guestctl.offload.tools import Answer, Plan, StepDown, Tools
from guestctl.places import Places
from guestctl.toolchain import Toolchain, install
from guestctl.view import Tree, View
from guestctl.wire import Tag
from tests.farhost import CROSS, FarHost, far_host

ARCH = "armv5l"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("box", CompileHost("box")),
        ("box:99/8,lzo", CompileHost("box", 99, 8, True)),
        ("10.0.0.7/1", CompileHost("10.0.0.7", 3632, 1)),
        ("[::1]:4/2", CompileHost("::1", 4, 2)),
    ],
)
def test_hosts_are_named_as_distcc_names_them(text: str, host: CompileHost) -> None:
    assert parse_host(text) == host
    assert parse_host(str(host)) == host


@pytest.mark.parametrize(
    "text",
    ["", "box:0", "box:65536", "box/0", "box/999", "box,cpp", "user@box", "localhost", "box:x",
     "-x", "a b", "box,lzo,", "../x"],
)  # fmt: skip
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_host(text)


@pytest.fixture
def book(own_places: Places) -> HostBook:
    return HostBook(own_places.config, own_places.runtime)


def states(book: HostBook) -> dict[str, tuple[str, str]]:
    return {listed.host.name: (listed.state, listed.origin) for listed in book.hosts()}


def test_hosts_come_and_go_while_others_look(book: HostBook, own_places: Places) -> None:
    assert book.hosts() == []
    (own_places.config / "config.yaml").write_text("compile_hosts: [one/2, 'two:7,lzo']\n")
    assert states(book) == {"one:3632": ("active", "config"), "two:7": ("active", "config")}
    other = HostBook(own_places.config, own_places.runtime)
    other.add(parse_host("three"))
    other.drain(parse_host("one"))
    other.remove(parse_host("two:7"))
    assert states(book) == {"one:3632": ("draining", "config"), "three:3632": ("active", "added")}
    other.add(parse_host("one/9"))
    assert states(book)["one:3632"] == ("active", "config")
    assert book.hosts()[0].host.limit == 9
    with pytest.raises(UsageError, match="no compile host four:3632"):
        other.drain(parse_host("four"))


@pytest.mark.parametrize("text", ["compile_hosts: [a b]", "compile_hosts: 3", "[", "- x"])
def test_a_config_that_is_wrong_is_named(book: HostBook, own_places: Places, text: str) -> None:
    (own_places.config / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"config\.yaml: compile_hosts: "):
        book.hosts()


def test_lzo_is_there_and_back() -> None:
    for data in (b"", b"x", bytes(100_000), bytes(range(256)) * 999):
        assert lzo.expand(lzo.compress(data), 1 << 20) == data
    assert len(lzo.compress(bytes(100_000))) < 1000
    with pytest.raises(OffloadError):
        lzo.expand(lzo.compress(bytes(1000)), 999)
    with pytest.raises(OffloadError):
        lzo.expand(b"rubbish", 1 << 20)


def test_lzo_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    lzo.library.cache_clear()
    monkeypatch.setattr(lzo, "_LIBRARY", "libnothing.so.9")
    with pytest.raises(HostLacks, match="needs libnothing"):
        lzo.require()
    lzo.library.cache_clear()


@pytest.mark.parametrize(
    ("words", "before", "options", "output"),
    [
        ("-O2 -c a.c", "-O2 -E -fpch-preprocess a.c", "-O2", "a.o"),
        ("-DX=1 -I inc -c d/a.c -o x.o", "-DX=1 -I inc -E -fpch-preprocess d/a.c", "", "x.o"),
        (
            "-MD -MP -MF .d/a -Wall -c a.c -o a.o",
            "-MD -MP -MF .d/a -Wall -MQ a.o -E -fpch-preprocess a.c",
            "-Wall",
            "a.o",
        ),
        ("-MT t -MMD -MF d -c a.c", "-MT t -MMD -MF d -E -fpch-preprocess a.c", "", "a.o"),
    ],
)
def test_a_compilation_is_split(words: str, before: str, options: str, output: str) -> None:
    made = split_call("gcc", [b"gcc", *words.encode().split()])
    assert made is not None and made.preprocess is not None
    assert b" ".join(made.preprocess).decode() == f"gcc {before}"
    assert b" ".join(made.options).decode() == options
    assert made.output == output.encode()
    assert made.remote(b"cc")[-4:] == (b"-S", b"-o", b"relayed.s", b"relayed.i")


@pytest.mark.parametrize(
    "words",
    ["a.c", "-c a.c b.c", "-S a.c", "-c a.s", "-c a.S", "-c -g a.c", "-c -fsanitize=undefined a.c",
     "-c -xc a.c", "-c a.c @args", "-c a.c -o", "-MD -c a.c", "-c -save-temps a.c", "-c a.c -I",
     "-c --coverage a.c", "-c -fprofile-generate a.c", "-c -Wp,-MD,x a.c", "-c -aux-info x a.c",
     "-c -fstack-usage a.c", "-c -flto a.c", "-c -fdump-tree-all a.c", "-c -fplugin=x a.c",
     "-c -MD -MF x a.i", "-c -", "-c a.c --unknown", "-c -include"],
)  # fmt: skip
def test_what_is_no_plain_compilation_is_not_split(words: str) -> None:
    assert split_call("gcc", [b"gcc", *words.encode().split()]) is None


def test_languages() -> None:
    for role, source, language in (("gcc", b"a.cc", "c++"), ("g++", b"a.c", "c++")):
        made = split_call(role, [b"x", b"-c", source])
        assert made is not None and made.language == language
    assert split_call("ld", [b"ld", b"-c", b"a.c"]) is None


def test_only_the_compilers_name_is_changed() -> None:
    text = b'\t.ascii\t"GCC: (x) 1"\n\t.ident\t"GCC: (theirs) 1"\n'
    assert renamed(text, b"GCC: (ours) 1", b"GCC: (theirs) 1") == text.replace(b"theirs", b"ours")
    assert renamed(text, b"GCC: (ours) 1", b"GCC: (others) 1") is None
    assert renamed(text + text, b"GCC: (ours) 1", b"GCC: (theirs) 1") is None


# --- with a real distccd ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toolchain(places: Places) -> Toolchain:
    return install(ARCH, cache_dir=places.cache)


@pytest.fixture(scope="module")
def view(toolchain: Toolchain, places: Places) -> Iterator[View]:
    with View({}, toolchain.path, cache_dir=places.cache) as made:
        yield made


@pytest.mark.parametrize("compressed", [False, True])
def test_the_same_compiler_is_recognized(
    tmp_path: Path, toolchain: Toolchain, view: View, compressed: bool
) -> None:
    with far_host(tmp_path / "far", lzo=compressed) as far:
        for language, name in (("c", f"{CROSS}-gcc-12"), ("c++", f"{CROSS}-g++-12")):
            found = examine(far.host, toolchain, view, language)
            assert found.name == name.encode()
            assert found.own.startswith(b"GCC: (Debian 12.2.0-14")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exec gcc {words}", "another compiler: target x86_64-linux-gnu, not arm-linux-gnueabi"),
        (f"exec {CROSS}-gcc-12 -march=armv7-a -mfpu=neon {{words}}", "makes something else with"),
        (
            f"{CROSS}-gcc-12 {{words}} 2>&1 | sed 's/\\(executable checksum:\\).*/\\1 0/' >&2",
            "checksum 0, not",
        ),
        ("echo broken >&2; exit 1", "does not compile a probe"),
        ("kill -9 $$", "does not compile a probe"),
    ],
)
def test_another_compiler_is_refused_and_the_difference_named(
    tmp_path: Path, toolchain: Toolchain, view: View, script: str, problem: str
) -> None:
    with far_host(tmp_path / "far") as far:
        path = far.script(f"{CROSS}-gcc-12", script.format(words='"$@"'))
        far.allow(path)
        with pytest.raises(OffloadError, match=problem):
            examine(far.host, toolchain, view, "c")


def test_a_host_without_the_compiler_and_no_host_at_all(
    tmp_path: Path, toolchain: Toolchain, view: View
) -> None:
    with far_host(tmp_path / "far") as far:
        far.allow("/usr/bin/true")
        with pytest.raises(OffloadError, match="does not run arm-linux-gnueabi-gcc-12"):
            examine(far.host, toolchain, view, "c")
        far.stop()
        with pytest.raises(OffloadError, match="refused"):
            examine(far.host, toolchain, view, "c")


# --- calls --------------------------------------------------------------------------------------

MOUNTS = b"""\
35 29 0:14 / / rw,noatime - overlay image rw
36 35 0:5 / /dev rw - devtmpfs dev rw
42 35 0:21 / /work rw - 9p work rw
"""
CALLER = {
    Tag.JOB: b"\1\0\0\0",
    Tag.CALLER_ROOT: b"/",
    Tag.ROOT_DEVICE: struct.pack("<II", 0, 14),
    Tag.MOUNTS: MOUNTS,
    Tag.CHANGED: b"proc\0",
}


class Bench:
    """Tools as a lease has them, over a share of the test's own, with one slot on this host."""

    def __init__(self, places: Places, own: Places, toolchain: Toolchain, share: Path) -> None:
        self.share = share
        self.book = HostBook(own.config, own.runtime)
        self.slots = Slots(own.runtime, 1)
        root = image.root_folder(image.load(ARCH, cache_dir=places.cache))
        trees = {"work": Tree(share, "mapped-xattr"), "root": Tree(root, None, fixed=True)}
        self.tools = Tools(
            trees,
            [toolchain],
            self.slots,
            cache_dir=places.cache,
            runtime=own.runtime,
            hosts=self.book,
        )

    @property
    def machines(self) -> Machines:
        return self.tools.machines

    def call(self, words: str, program: str = "gcc") -> Answer:
        plan = self.plan(words, program)
        done = self.tools.run(plan, None, lambda _cancel: None)
        assert isinstance(done, Answer), done
        return done

    def plan(self, words: str, program: str = "gcc") -> Plan:
        argv = (program.encode(), *words.encode().split())
        environment = {b"PATH": b"/usr/bin:/bin"}
        path = f"/usr/bin/{program}".encode()
        plan = self.tools.plan(
            Request(program.encode(), path, b"/work", 0o022, argv, environment), CALLER
        )
        assert not isinstance(plan, StepDown), plan
        return plan

    def wait_for(self, host: CompileHost, language: str = "c", there: bool = True) -> None:
        (toolchain,) = {self.plan("-c a.c").toolchain.id: self.plan("-c a.c").toolchain}.values()
        deadline = time.monotonic() + 60
        while (host in [far.host for far in self.machines.ready(toolchain, language)]) is not there:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def bench(
    places: Places, own_places: Places, toolchain: Toolchain, tmp_path: Path
) -> Iterator[Bench]:
    image.build(ARCH, cache_dir=places.cache)
    share = tmp_path / "share"
    share.mkdir()
    (share / "a.h").write_text("#define A 3\n")
    (share / "a.c").write_text('#include <stdio.h>\n#include "a.h"\nint f(int x) { return x*A; }\n')
    (share / "w.c").write_text("int f(void) { int unused; return 1; }\n")
    (share / "b.cc").write_text(
        "#include <vector>\nnamespace { struct X { virtual int f() { return 1; } } x; }\n"
        "int g(std::vector<int> &v) { v.push_back(x.f()); return v.size(); }\n"
    )
    (share / "bad.c").write_text("int f(void) { return missing; }\n")
    made = Bench(places, own_places, toolchain, share)
    yield made
    made.tools.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHost]:
    with far_host(tmp_path / "far", limit=3) as made:
        yield made


def busy(bench: Bench) -> Callable[[], None]:
    """Takes the only slot of this host, so that calls must go elsewhere; gives what frees it."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with bench.slots.taken():
            held.set()
            over.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)

    def release() -> None:
        over.set()
        thread.join(60)

    return release


COMPILATIONS = (
    ("gcc", "-O2 -c a.c"),
    ("gcc", "-O2 -Wall -fPIC -MD -MP -MF a.d -c a.c -o a.lo"),
    ("gcc", "-Os -DA2 -MMD -MF a.d -MT x -c a.c"),
    ("g++", "-O2 -std=c++17 -fno-exceptions -c b.cc -o b.o"),
    ("g++", "-Wa,--noexecstack -c a.c"),
)


def test_what_is_compiled_elsewhere_has_the_same_bytes(bench: Bench, far: FarHost) -> None:
    here = [bench.call(words, program) for program, words in COMPILATIONS]
    assert {answer.compile_host for answer in here} == {""}
    bench.book.add(far.host)
    for language in ("c", "c++"):
        bench.wait_for(far.host, language)
    free = busy(bench)
    try:
        there = [bench.call(words, program) for program, words in COMPILATIONS]
    finally:
        free()
    for (_, words), ours, theirs in zip(COMPILATIONS, here, there, strict=True):
        assert theirs.compile_host == far.host.name, words
        assert sorted(ours.written, key=str) == sorted(theirs.written, key=str), words
        assert (theirs.status, theirs.stdout, theirs.stderr) == (0, b"", b"")


def test_what_is_said_of_a_source_is_said_here(bench: Bench, far: FarHost) -> None:
    bench.book.add(far.host)
    bench.wait_for(far.host)
    free = busy(bench)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(bench.call, words) for words in ("-Wall -c w.c", "-c bad.c")]
        deadline = time.monotonic() + 60
        # The first asks elsewhere and is warned, the second hears of an error; both wait then.
        while bench.slots.free(far.host) < far.host.limit or far.served() < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        free()
        warned, failed = (future.result(120) for future in waiting)
    assert warned.compile_host == failed.compile_host == ""
    assert (warned.status, failed.status) == (0, 1)
    assert b"w.c:1:19: warning: unused variable" in warned.stderr
    assert b"bad.c:1:22: error" in failed.stderr


def test_a_host_may_be_lost_drained_and_come_back(
    bench: Bench, far: FarHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "_BACKOFF", 0.2)
    bench.book.add(far.host)
    bench.wait_for(far.host)
    wanted = bench.call("-O2 -c a.c").written
    over = threading.Event()
    made: list[Answer] = []

    def build() -> None:
        while not over.is_set():
            made.append(bench.call("-O2 -c a.c"))

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def goes_there() -> bool:
        return any(answer.compile_host for answer in made[-30:])

    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        until(goes_there)
        # Killed with its children, in the middle of compilations.
        far.stop()
        until(lambda: not goes_there() and len(made) > 40)
        far.start()
        until(goes_there)
        bench.book.drain(far.host)
        until(lambda: bench.slots.free(far.host) == far.host.limit)
        count = far.served()
        assert not bench.machines.ready(bench.plan("-c a.c").toolchain, "c")
        bench.book.add(far.host)
        until(lambda: far.served() > count)
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert all(answer.written == wanted and not answer.stderr for answer in made)


def test_a_wrong_list_of_hosts_keeps_nobody_from_compiling(
    bench: Bench, own_places: Places
) -> None:
    (own_places.config / "config.yaml").write_text("compile_hosts: [user@box]\n")
    assert bench.call("-c a.c").status == 0
    assert bench.book.slots() == 0


# --- the command --------------------------------------------------------------------------------


def test_hosts_are_listed_added_and_drained(
    own_places: Places,
    places: Places,
    far: FarHost,
    toolchain: Toolchain,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (own_places.cache / "steps").symlink_to(places.cache / "steps")
    monkeypatch.setattr(Places, "of_user", classmethod(lambda _class: own_places))

    def run(*words: str) -> str:
        program(["offload", "hosts", *words], standalone_mode=False, obj={"debug": False})
        return capsys.readouterr().out

    assert f"{ARCH}, c: {CROSS}-gcc-12" in run("add", str(far.host))
    assert far.host.name in run()
    run("drain", far.host.name)
    assert '"state": "draining"' in run("--json")
    run("remove", far.host.name)
    assert '"hosts": []' in run("--json")
    far.stop()
    with pytest.raises(OffloadError, match="refused"):
        run("add", str(far.host))
    assert '"hosts": []' in run("--json")
