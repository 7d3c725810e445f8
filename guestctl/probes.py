"""Proves a toolchain: the same calls in a guest and on the host must come out the same.

Each probe is run by the guest's own compiler in a real guest, and by the host's in a view of the
same files; status, output and every file are compared byte for byte. What was linked on the host is
then run in the guest.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guestctl import image, toolchain
from guestctl.errors import GuestctlError
from guestctl.guest import Guest
from guestctl.invocation import PATH
from guestctl.places import Places
from guestctl.pool import Pool
from guestctl.toolchain import GuestFiles, Mismatch, Refusal, Toolchain
from guestctl.view import Bind, Call, Mount, Outcome, Tree, View

__all__ = ["PROBES", "SOURCES", "Probe", "Verdict", "check"]

_TIMEOUT = 600.0
_WORK = b"/work"
_TEMPORARY = re.compile(rb"/tmp/cc\w{6}")
_ENVIRONMENT = {b"PATH": PATH.encode(), b"LANG": b"C.UTF-8"}


@dataclass(frozen=True)
class Probe:
    """One call, in a folder that holds SOURCES and what earlier probes made.

    `run` is the program that it links and what that prints.
    """

    what: str
    call: str
    run: tuple[str, bytes] | None = None


SOURCES: dict[str, bytes] = {
    "hello.c": b"""\
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "own.h"
static const char *file = __FILE__;
int main(int argc, char **argv)
{
	char copy[GREETING_MAX];
	double root = sqrt(argc * 4.0);
	strncpy(copy, argc > 7 ? argv[7] : "hello", sizeof copy - 1);
	copy[sizeof copy - 1] = 0;
	printf("%s from %s: %d %lld\\n", copy, file, (int)root, 10000000000LL / argc);
	return 0;
}
""",
    "own.h": b"#define GREETING_MAX 32\n",
    "plus.cc": b"""\
#include <map>
#include <stdexcept>
#include <string>
#include <cstdio>
namespace { struct Item { std::string name; int count; }; }
static int total(const std::map<std::string, Item> &items)
{
	int sum = 0;
	for (const auto &pair : items)
		sum += pair.second.count;
	if (sum == 3)
		throw std::runtime_error("three");
	return sum;
}
int main()
{
	std::map<std::string, Item> items;
	items["a"] = Item{"one", 1};
	items["b"] = Item{"two", 2};
	try {
		return total(items);
	} catch (const std::exception &error) {
		std::puts(error.what());
	}
	return 0;
}
""",
    "free.c": b"int f(int a, int b) { return a / b + (a << 3); }\nlong long g(long long a) {"
    b" return a * 7 % 13; }\nvoid _start(void) { for (;;) ; }\n",
    "guard.c": b"#include <string.h>\nvoid g(char *);\nvoid f(const char *s) { char b[64];"
    b" strcpy(b, s); g(b); }\n",
    "warn.c": b"int f(void) { int unused; return; }\n",
    "broken.c": b"int main(void) { return missing; }\n",
    "start.S": b"#define SIZE 4\n.text\n.globl start\nstart: .space SIZE\n.data\n.long start\n",
}

PROBES: tuple[Probe, ...] = (
    Probe("C", "gcc -O2 -Wall -c hello.c -MD"),
    Probe("C with debug information", "gcc -g -c hello.c -o debug.o"),
    Probe("C with macros in debug information", "gcc -O1 -g3 -c guard.c -o macros.o"),
    Probe("freestanding C", "gcc -ffreestanding -nostdlib -O2 -o free free.c -lgcc"),
    Probe("stack protector", "gcc -O2 -fstack-protector-strong -fPIC -c guard.c"),
    Probe("C++", "g++ -O2 -g -c plus.cc"),
    Probe("assembler", "gcc -g -c start.S"),
    Probe("assembly", "gcc -O2 -S hello.c"),
    Probe("preprocessor", "gcc -E -dD hello.c"),
    Probe("dependencies of C++", "g++ -M plus.cc"),
    Probe("headers", "gcc -H -fsyntax-only hello.c"),
    Probe("a warning", "gcc -Wall -c warn.c"),
    Probe("an error", "gcc -c broken.c"),
    Probe("a missing file", "gcc -c missing.c"),
    Probe("an unknown option", "gcc -fmissing -c hello.c"),
    Probe("gcc's version", "gcc -v"),
    Probe("gcc's folders", "gcc -print-search-dirs"),
    Probe("gcc's specs", "gcc -dumpspecs"),
    Probe("what gcc runs", "gcc -### -O2 hello.c -lm"),
    Probe("the linker's script", "ld --verbose"),
    Probe("relocatable link", "ld -r -o all.o hello.o start.o"),
    Probe("shared library", "gcc -shared -o libguard.so guard.o"),
    Probe("dynamic link", "gcc -o dynamic hello.o -lm",
          ("dynamic", b"hello from hello.c: 2 10000000000\n")),
    Probe("static link", "gcc -static -o static hello.o -lm",
          ("static", b"hello from hello.c: 2 10000000000\n")),
    Probe("C++ link", "g++ -o plus plus.o", ("plus", b"three\n")),
    Probe("compile and link", "gcc -O2 -pipe -o both hello.c -lm",
          ("both", b"hello from hello.c: 2 10000000000\n")),
    Probe("a failing link", "gcc -o bad hello.o"),
    Probe("a missing library", "gcc -o bad hello.o -lmissing"),
    Probe("archive", "ar cr libx.a hello.o guard.o"),
    Probe("archive's index", "ranlib libx.a"),
    Probe("symbols", "nm libx.a"),
    Probe("strip", "strip --strip-debug debug.o"),
    Probe("objcopy", "objcopy --remove-section=.comment macros.o"),
    Probe("C by the compiler in /tools", "/tools/bin/gcc -O2 -g -c hello.c -o tools.o"),
    Probe("C++ by the compiler in /tools", "/tools/bin/g++ -g -c plus.cc -o plustools.o -MD"),
    Probe("link by the compiler in /tools", "/tools/bin/g++ -o tools plustools.o",
          ("tools", b"three\n")),
    Probe("an error of /tools", "/tools/bin/gcc hello.o -lmissing"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """How a probe ended: `problem` is empty when both sides did the same."""

    probe: Probe
    problem: str


@dataclass(frozen=True)
class _Side:
    """What a call has done on one side."""

    status: int | None
    stdout: bytes
    stderr: bytes


def check(
    arch: str,
    places: Places,
    probes: tuple[Probe, ...] = PROBES,
    report: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Runs the probes with the installed toolchain and a guest of the built image.

    Raises GuestctlError when there is no toolchain, no image, or no confined view.
    """
    used = toolchain.find(arch, cache_dir=places.cache)
    made = image.load(arch, cache_dir=places.cache)
    root = image.root_folder(made)
    with (
        tempfile.TemporaryDirectory(dir=places.cache, prefix="check-") as scratch,
        Pool(arch, 1, places=places) as pool,
        pool.lease(timeout=60) as guest,
    ):
        host = Path(scratch)
        for folder in (host, guest.work.path):
            for name, text in SOURCES.items():
                (folder / name).write_bytes(text)
        trees = {"root": Tree(root, None, fixed=True), "work": Tree(host)}
        with View(trees, used.path, cache_dir=places.cache) as view:
            done = [_Host(view, used, trees).run(probe) for probe in probes]
        verdicts = list(_compare(guest, host, probes, done))
        verdicts += _run_results(guest, host, probes)
    for verdict in verdicts:
        report(verdict)
    return verdicts


class _Host:
    """The host's side: pairs, translates and runs, and keeps what was written in the folder."""

    def __init__(self, view: View, used: Toolchain, trees: dict[str, Tree]) -> None:
        self.view, self.used, self.trees = view, used, trees
        self.mounts = (Mount("root", b"", b"/"), Mount("work", b"", _WORK))

    def run(self, probe: Probe) -> _Side | str:
        """What the call did, or why it was not made."""
        argv = [word.encode() for word in probe.call.split()]
        program = argv[0] if argv[0].startswith(b"/") else b"/usr/bin/" + argv[0]
        path = PATH.encode().split(b":")
        pairing = toolchain.pair(GuestFiles(self.trees, self.mounts), program, path, [self.used])
        if isinstance(pairing, Mismatch):
            return str(pairing)
        command = toolchain.translate(pairing, program, argv, _ENVIRONMENT)
        if isinstance(command, Refusal):
            return command.reason
        binds = tuple(Bind(source, at) for source, at in command.binds)
        outcome = self.view.call(
            Call(command.program, command.argv, command.environ, _WORK, self.mounts, binds=binds)
        )
        if outcome.trouble or outcome.signal:
            return outcome.trouble or f"ended by signal {outcome.signal}"
        return self.keep(outcome)

    def keep(self, outcome: Outcome) -> _Side | str:
        for written in outcome.written:
            if written.kind != "file" or not written.path.startswith(_WORK + b"/"):
                return f"{written.path!r}: a {written.kind} that was not expected"
            wrong = toolchain.check_object(written.data, self.used.arch)
            if wrong:
                return f"{written.path!r}: {wrong}"
            path = self.trees["work"].path / written.path[len(_WORK) + 1 :].decode()
            path.write_bytes(written.data)
            if written.mode is not None:
                path.chmod(written.mode)
        return _Side(outcome.status, outcome.stdout, outcome.stderr)


def _compare(
    guest: Guest, host: Path, probes: tuple[Probe, ...], done: list[_Side | str]
) -> Iterator[Verdict]:
    """Runs the probes in the guest; a probe is to blame for the files that it makes."""
    for probe, ours in zip(probes, done, strict=True):
        if isinstance(ours, str):
            yield Verdict(probe, f"the host did not run it: {ours}")
            continue
        with guest.mounted():
            result = guest.run(probe.call.split(), timeout=_TIMEOUT)
        theirs = _Side(result.status, result.stdout, result.stderr)
        yield Verdict(probe, _difference(ours, theirs))
    folders = (host, guest.work.path)
    made = {path.name for folder in folders for path in folder.iterdir() if path.is_file()}
    for name in sorted(made):
        one, other = host / name, guest.work.path / name
        if not one.exists() or not other.exists():
            where = "host" if one.exists() else "guest"
            yield Verdict(Probe(f"the file {name}", ""), f"only the {where} made it")
        elif one.read_bytes() != other.read_bytes():
            yield Verdict(Probe(f"the file {name}", ""), "it differs between guest and host")


def _difference(ours: _Side, theirs: _Side) -> str:
    if ours.status != theirs.status:
        return f"status {ours.status} on the host, {theirs.status} in the guest"
    for stream in ("stdout", "stderr"):
        one, other = (_TEMPORARY.sub(b"TEMP", getattr(side, stream)) for side in (ours, theirs))
        if one != other:
            pairs = zip([*one.splitlines(), b""], [*other.splitlines(), b""], strict=False)
            lines = next((pair for pair in pairs if pair[0] != pair[1]), (b"", b""))
            return f"{stream}: {lines[0][:200]!r} on the host, {lines[1][:200]!r} in the guest"
    return ""


def _run_results(guest: Guest, host: Path, probes: tuple[Probe, ...]) -> Iterator[Verdict]:
    """Runs in the guest what the host has linked."""
    for probe in probes:
        if probe.run is None:
            continue
        name, wanted = probe.run
        runs = Probe(f"running what was made by {probe.what}", f"./{name}")
        if not (host / name).exists():
            yield Verdict(runs, "the host has not made it")
            continue
        target = guest.work.path / f"host-{name}"
        shutil.copyfile(host / name, target)
        with guest.mounted():
            guest.run(["chmod", "755", target.name], timeout=_TIMEOUT).check()
            try:
                result = guest.run([f"./{target.name}"], timeout=_TIMEOUT)
                said = result.stdout if result.status == 0 else f"status {result.status}".encode()
            except GuestctlError as error:
                said = str(error).encode()
        yield Verdict(runs, "" if said == wanted else f"it said {said[:200]!r}")
