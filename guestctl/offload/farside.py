"""Whether the compiler of a compile host is the toolchain's own: asked of it by probes.

gcc's `-v` tells the checksum that its build made of the objects of cc1, which says that both are
the same build. What the driver adds, such as the processor that it compiles for, shows in what it
makes of some text; that must be equal, but for the name of the package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from guestctl.errors import OffloadError
from guestctl.offload.distccd import Compiled, HostFailed, compile_there
from guestctl.offload.hosts import CompileHost
from guestctl.offload.relay import Relay, ident_of, renamed
from guestctl.toolchain import Toolchain
from guestctl.view import Bind, Call, Given, Mount, View

__all__ = ["LANGUAGES", "FarCompiler", "examine", "hidden_home"]

LANGUAGES = ("c", "c++")
_PREFIX = "usr"
_DRIVERS = {"c": "gcc", "c++": "g++"}
_SUFFIXES = {"c": b"i", "c++": b"ii"}
_FACTS = {
    "target": re.compile(rb"^Target: (\S+)$", re.MULTILINE),
    "version": re.compile(rb"^GNU C\S* .* version (\S+) \(", re.MULTILINE),
    "checksum": re.compile(rb"^Compiler executable checksum: (\w+)$", re.MULTILINE),
}
# As it comes from a preprocessor: loops, calls, numbers of all kinds, a table and a constant pool.
_PROBES = {
    "c": b"""# 1 "probe.c"
typedef unsigned long size; extern void *memcpy(void *, const void *, size);
static const double table[4] = { 0.1, 1e10, -3.5, 2.0 };
struct pair { char a; long long b; float c; }; extern int other(struct pair *, ...);
int f(int n, struct pair *p) { int s = 0; char room[40];
 for (int i = 0; i < n; i++) { s += (int)(table[i & 3] * p[i].c) / (p[i].a | 1);
 switch (s & 7) { case 0: s ^= 5; break; case 3: s *= 7; break; case 5: s = other(p, s, 1.5); } }
 memcpy(room, p, sizeof(room) < (size)n ? sizeof(room) : (size)n);
 return s + room[n & 31] + (int)(p->b >> (n & 63)); }
_Thread_local int each; int *where(void) { return &each; }
int atomic(int *x) { return __sync_fetch_and_add(x, 2); }
""",
    "c++": b"""# 1 "probe.cc"
struct Base { virtual ~Base(); virtual int get(int) = 0; };
struct Some : Base { int n; int get(int x) override { return x * n; } };
template <typename T> T sum(const T *from, const T *to) {
 T all{}; for (; from != to; ++from) all += *from; return all; }
namespace { int hidden(double x) { return x > 2.5 ? 1 : throw 4; } }
int f(Base *b, const double *d, int n) try { Some s; s.n = n; static Some kept;
 return b->get(3) + s.get(4) + static_cast<int>(sum(d, d + n)) + hidden(d[0]) + kept.n;
} catch (int e) { return e; }
auto g(int x) { return [x](long long y) { return x + y / 3; }(x << 2); }
int use() { return static_cast<int>(g(5)); }
""",
}
_OPTIONS = ((b"-v", b"-O2"), (b"-Os", b"-fPIC", b"-fstack-protector-strong"))


@dataclass(frozen=True)
class FarCompiler:
    """A compile host's compiler that is as good as ours: its name there, and both in `.ident`."""

    host: CompileHost
    name: bytes
    own: bytes
    theirs: bytes


def hidden_home(toolchain: Toolchain) -> dict[str, object]:
    """What a call needs to run the toolchain's own compiler in a view, with no guest's files."""
    binds = tuple(
        Bind(toolchain.source(f"/{_PREFIX}", own).encode(), f"/{_PREFIX}/{own.path}".encode())
        for own in toolchain.programs
    )
    return {"cwd": b"/", "mounts": (Mount(None, b"", b"/"),), "binds": binds, "environment": {}}


def examine(host: CompileHost, toolchain: Toolchain, view: View, language: str) -> FarCompiler:
    """Compares a host's compiler with the toolchain's; raises HostFailed, with what differs.

    The first of the names that it may have there is taken that it runs at all.
    """
    driver = _DRIVERS[language]
    names = (f"{toolchain.triplet}-{driver}-{toolchain.major}", f"{toolchain.triplet}-{driver}")
    failure: HostFailed | None = None
    for name in names:
        try:
            return _compare(host, name.encode(), toolchain, view, language)
        except HostFailed as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _compare(
    host: CompileHost, name: bytes, toolchain: Toolchain, view: View, language: str
) -> FarCompiler:
    own = theirs = b""
    for options in _OPTIONS:
        relay = Relay(language, b"", None, options, options, b"")
        there = compile_there(host, relay.remote(name), _PROBES[language])
        if there.status:
            raise HostFailed(f"{host.name}: its {name.decode()} does not compile a probe")
        here = _ours(toolchain, view, language, options)
        if b"-v" in options:
            _compare_facts(host, here.stderr, there.stderr)
            own, theirs = ident_of(here.made), ident_of(there.made)
        if renamed(there.made, own, theirs) != here.made:
            words = b" ".join(options).decode()
            raise HostFailed(f"{host.name}: its {name.decode()} makes something else with {words}")
    return FarCompiler(host, name, own, theirs)


def _compare_facts(host: CompileHost, here: bytes, there: bytes) -> None:
    for what, pattern in _FACTS.items():
        ours, its = (pattern.search(text) for text in (here, there))
        if ours is None:
            raise OffloadError(f"the toolchain does not tell its {what}")
        if its is None or its[1] != ours[1]:
            has = its[1].decode(errors="replace") if its else "none that it tells"
            raise HostFailed(f"{host.name}: another compiler: {what} {has}, not {ours[1].decode()}")


def _ours(toolchain: Toolchain, view: View, language: str, options: tuple[bytes, ...]) -> Compiled:
    """The same by the toolchain: under the names that a compile host gives to its files."""
    driver = next(own for own in toolchain.programs if own.role == _DRIVERS[language])
    source = b"/relayed." + _SUFFIXES[language]
    program = f"/{_PREFIX}/{driver.path}".encode()
    outcome = view.call(
        Call(
            program=program,
            argv=(program, *options, b"-S", b"-o", b"/relayed.s", source),
            given=(Given(source, _PROBES[language]),),
            **hidden_home(toolchain),  # type: ignore[arg-type]
        )
    )
    if outcome.status != 0 or len(outcome.written) != 1:
        text = outcome.stderr.decode(errors="replace").strip()
        raise OffloadError(f"the toolchain does not compile a probe: {text[-200:]}")
    return Compiled(0, outcome.stdout, outcome.stderr, outcome.written[0].data)
