"""What a view adds to a compiler's own time, and what a large tree adds to that."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guestctl import image, vmeta
from guestctl.places import Places
from guestctl.view import Mount, Outcome, Tree, View
from tests.viewtools import CROSS, GuestShare, compiler, cross_toolchain

ROUNDS = 60
FILES = 34
CONFTEST = '#include <stdio.h>\n#include <stdlib.h>\nint main(void) { return puts("") < 0; }\n'
MOUNTS = (Mount("root", b"", b"/"), Mount("work", b"", b"/work"))
FUNCTION = """int work_%d(const char *text, int *table)
{
	char *end, line[200];
	long number = strtol(text, &end, 10);
	for (int i = 0; i < number; i++)
		table[i %% 7] += snprintf(line, sizeof(line), "%%d %%s %%ld", i, end, number << %d);
	return qsort(table, 7, sizeof(int), (int (*)(const void *, const void *))strcmp), table[3];
}
"""


def main() -> None:
    places = Places.of_user()
    with tempfile.TemporaryDirectory(dir=places.cache) as name:
        folder = Path(name)
        _unpack(image.load("armv5l", cache_dir=places.cache).root, folder / "root")
        toolchain = cross_toolchain(folder / "tc")
        plain = folder / "plain"
        plain.mkdir()
        _sources(lambda path, text: (plain / path).write_text(text) and None)
        _report("conftest, compile and link: plain", _times(lambda: _plain(folder, "conftest.c")))
        for model in vmeta.MODELS:
            share = GuestShare(folder / model, model)
            _sources(share.file)
            trees = {"root": Tree(folder / "root", fixed=True), "work": Tree(share.path, model)}
            with View(trees, toolchain, cache_dir=places.cache) as view:
                _report(f"  in a view, {model}", _times(lambda: _view(view, "conftest.c")))
        _large(folder, toolchain, places)
        for jobs in (1, 4):
            base = _parallel(jobs, lambda path: _plain(folder, "-O2", "-c", path))
            ours = _in_view(folder, toolchain, places, jobs)
            print(f"{FILES} files, -O2 -c, -j{jobs}: plain {base:5.2f} s, view {ours:5.2f} s")


def _unpack(root: Path, folder: Path) -> None:
    """The image's root with real links; devices are not for ordinary users."""
    command = ["unsquashfs", "-no-progress", "-ignore-errors", "-no-exit-code", "-d", folder, root]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def _sources(write: Callable[[str, str], None]) -> None:
    write("conftest.c", CONFTEST)
    headers = "".join(f"#include <{name}.h>\n" for name in ("stdio", "stdlib", "string"))
    for number in range(FILES):
        functions = "".join(FUNCTION % (n, n % 8) for n in range(60))
        write(f"file{number}.c", headers + functions)


def _plain(folder: Path, *argv: str) -> None:
    words = [f"{CROSS}-gcc", f"--sysroot={folder / 'root'}", *argv, "-o", _object(argv)]
    # With a deadline, subprocess would poll, and sleep between.
    subprocess.run(words, cwd=folder / "plain", check=True, env={"PATH": "/usr/bin:/bin"})


def _object(argv: tuple[str, ...]) -> str:
    return f"{argv[-1]}.o"


def _view(view: View, *argv: str) -> Outcome:
    words = ("--sysroot=/", *argv, "-o", _object(argv))
    outcome = view.call(compiler(*words, cwd=b"/work", mounts=MOUNTS))
    assert outcome.status == 0, outcome.stderr
    return outcome


def _times(once: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        once()
        times.append((time.perf_counter() - begin) * 1000)
    return times


def _report(what: str, times: list[float]) -> None:
    low, middle = min(times), statistics.median(times)
    print(f"{what:50} {middle:7.1f} ms median, {low:.1f} least", flush=True)


def _large(folder: Path, toolchain: Path, places: Places) -> None:
    """60,000 files in 4,000 folders, a link in every tenth of these."""
    share = GuestShare(folder / "large", vmeta.MAPPED_FILE)
    _sources(share.file)
    for top in range(40):
        share.folder(f"d{top}")
        for number in range(100):
            place = f"d{top}/e{number}"
            share.folder(place)
            for name in range(15):
                share.file(f"{place}/f{name}", "")
            if number % 10 == 0:
                share.link(f"{place}/link", "f0")
    trees = {"root": Tree(folder / "root", fixed=True), "work": Tree(share.path, share.model)}
    begin = time.perf_counter()
    with View(trees, toolchain, cache_dir=places.cache) as view:
        print(f"60,000 files: read once in {(time.perf_counter() - begin) * 1000:.0f} ms")
        run = lambda: _view(view, "conftest.c")  # noqa: E731
        first = _times(run)
        _report("  conftest", first)
        counter = iter(range(ROUNDS))

        def changed() -> None:
            share.link(f"d0/e1/new{next(counter)}", "f0")
            share.file("conftest.o", "x")
            share.remove("conftest.o")
            run()

        _report("  conftest, files and a link made each time", _times(changed))
    shutil.rmtree(share.path)


def _parallel(jobs: int, one: Callable[[str], object]) -> float:
    begin = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, (f"file{number}.c" for number in range(FILES))))
    return time.perf_counter() - begin


def _in_view(folder: Path, toolchain: Path, places: Places, jobs: int) -> float:
    path = folder / vmeta.MAPPED_FILE
    trees = {"root": Tree(folder / "root", fixed=True), "work": Tree(path, vmeta.MAPPED_FILE)}
    with View(trees, toolchain, cache_dir=places.cache) as view:
        return _parallel(jobs, lambda name: _view(view, "-O2", "-c", name))


if __name__ == "__main__":
    os.chdir("/")
    main()
