"""Toolchains as they are installed: paired with the image's compilers, run in a view."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import image, toolchain
from guestctl.errors import HostLacks, ImageError, UsageError
from guestctl.offload import compilers
from guestctl.offload.compilers import Compilers
from guestctl.offload.place import Place
from guestctl.places import Places
from guestctl.toolchain import Command, GuestFiles, Mismatch, Pairing, Toolchain
from guestctl.toolchain.elf import Elf
from guestctl.toolchain.pair import identify
from guestctl.view import Bind, Call, Mount, Outcome, Tree, View
from tests.viewtools import GuestShare

ARCH = "armv5l"
TRIPLET = "arm-linux-gnueabi"
PARTS = f"lib/gcc/{TRIPLET}/12"
PATH = (b"/usr/local/bin", b"/usr/bin", b"/tools/bin")
ROOT = Mount("root", b"", b"/")


@pytest.fixture(scope="module")
def used(places: Places) -> Toolchain:
    return toolchain.install(ARCH, cache_dir=places.cache)


@pytest.fixture(scope="module")
def root(places: Places) -> Path:
    return image.root_folder(image.build(ARCH, cache_dir=places.cache))


@pytest.fixture(scope="module")
def files(root: Path) -> GuestFiles:
    return GuestFiles({"root": Tree(root, None, fixed=True)}, [ROOT])


def test_installing_again_finds_what_is_there(used: Toolchain, places: Places) -> None:
    offline = ("http://127.0.0.1:9/debian",)
    again = toolchain.install(ARCH, cache_dir=places.cache, mirror=offline, locked=True)
    assert again == used
    assert toolchain.find(ARCH, cache_dir=places.cache) == used
    assert used in toolchain.installed(ARCH, cache_dir=places.cache)
    assert used not in toolchain.installed("x86_64", cache_dir=places.cache)
    assert used.version.startswith("12.2.0 (Debian 12.2.0-14")
    assert "gcc-12:armel" in used.packages
    assert f"gcc-12-{TRIPLET}:amd64" in used.packages


def test_without_a_toolchain_the_hint_says_how_to_get_one(own_places: Places) -> None:
    with pytest.raises(ImageError) as caught:
        toolchain.find(ARCH, cache_dir=own_places.cache)
    assert caught.value.hint == f"guestctl toolchain install {ARCH}"
    with pytest.raises(UsageError):
        toolchain.install("no-such-arch", cache_dir=own_places.cache)


def test_a_host_of_another_architecture_is_told(
    monkeypatch: pytest.MonkeyPatch, own_places: Places
) -> None:
    module = sys.modules["guestctl.toolchain.install"]
    monkeypatch.setattr(module, "host_architecture", lambda: "arm64")
    with pytest.raises(HostLacks, match="amd64"):
        toolchain.install(ARCH, cache_dir=own_places.cache)


def test_programs_start_by_their_own_loader_and_name_no_folder_of_the_host(
    used: Toolchain,
) -> None:
    programs = [path for path in (used.path / "usr").rglob("*") if path.is_file()]
    assert len(programs) == len(used.programs)
    libraries = set(os.listdir(used.path / "lib"))
    for path in [*programs, *(used.path / "tools").rglob("cc1*")]:
        data = path.read_bytes()
        assert b"gcc-cross" not in data, path
        assert Elf(data).interpreter in (b"/.tc/ld.so", b""), path
        assert {name for name in Elf(data).needed if "ld-linux" not in name} <= libraries, path
    loader = (used.path / "ld.so").read_bytes()
    assert not re.search(rb"\0/etc/ld\.so[^\0]*\0", loader)
    assert b"/lib/x86_64-linux-gnu/" not in loader


@pytest.mark.parametrize(
    ("program", "role", "prefix"),
    [
        ("/usr/bin/cc", "gcc", "/usr"),
        ("/usr/bin/gcc-12", "gcc", "/usr"),
        ("/usr/bin/c++", "g++", "/usr"),
        ("/usr/bin/cpp", "cpp", "/usr"),
        (f"/usr/bin/{TRIPLET}-gcc", "gcc", "/usr"),
        ("/usr/bin/as", "as", "/usr"),
        ("/usr/bin/ld", "ld", "/usr"),
        ("/usr/bin/ar", "ar", "/usr"),
        ("/bin/strip", "strip", "/usr"),
        ("/tools/bin/gcc", "gcc", "/tools"),
        ("/tools/bin/g++", "g++", "/tools"),
        ("/tools/bin/ld", "ld", "/tools"),
    ],
)
def test_the_images_compilers_are_known(
    files: GuestFiles, used: Toolchain, program: str, role: str, prefix: str
) -> None:
    found = toolchain.pair(files, program.encode(), PATH, [used])
    assert isinstance(found, Pairing), found
    assert (found.role, found.prefix) == (role, prefix)
    for source, at in found.binds:
        assert (used.path / os.fsdecode(source)).is_file()
        assert files.realpath(at) == at
    names = {os.path.basename(at) for _, at in found.binds}
    if role in ("gcc", "g++", "cpp"):
        assert {b"cc1", b"cc1plus", b"collect2", f"{TRIPLET}-as".encode()} <= names
    else:
        assert len(found.binds) == 1


@pytest.mark.parametrize(
    "program", ["/usr/bin/ls", "/usr/bin/c99-gcc", "/usr/bin/nothing", "/usr", "/usr/bin/ld.gold"]
)
def test_other_programs_are_not(files: GuestFiles, used: Toolchain, program: str) -> None:
    found = toolchain.pair(files, program.encode(), PATH, [used])
    assert isinstance(found, Mismatch)
    assert found.part == program or found.part.startswith("/usr/bin/")


def test_several_compilers_of_a_target_lie_side_by_side(
    files: GuestFiles, used: Toolchain, places: Places
) -> None:
    older = toolchain.install(ARCH, "11", cache_dir=places.cache)
    assert older.version.startswith("11.")
    assert {older.id, used.id} <= {each.id for each in toolchain.installed(cache_dir=places.cache)}
    assert toolchain.find(ARCH, cache_dir=places.cache) == used
    found = toolchain.pair(files, b"/usr/bin/gcc", PATH, [older, used])
    assert isinstance(found, Pairing)
    assert found.toolchain == used
    other = toolchain.pair(files, b"/usr/bin/gcc", PATH, [older])
    assert isinstance(other, Mismatch)
    assert "12.2.0" in other.guest
    assert "11.3.0" in other.host
    with pytest.raises(UsageError, match="gcc 3") as caught:
        toolchain.install(ARCH, "3", cache_dir=places.cache)
    assert "11" in caught.value.hint


# A sysroot of its own: what differs from the image is named.


@pytest.fixture
def small(root: Path, tmp_path: Path) -> Path:
    """A tree of a linker and a program that is no compiler's."""
    folder = tmp_path / "tree"
    (folder / "usr/bin").mkdir(parents=True)
    for name in (f"{TRIPLET}-ld.bfd", "file"):
        shutil.copy(root / "usr/bin" / name, folder / "usr/bin" / name)
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The programs whose bytes were read."""
    paths: list[bytes] = []

    def counted(files: GuestFiles, path: bytes) -> str:
        paths.append(path)
        return identify(files, path)

    monkeypatch.setattr(compilers, "identify", counted)
    return paths


LINKER = f"/usr/bin/{TRIPLET}-ld.bfd"


def test_what_a_compiler_is_is_known_to_the_next_lease(
    root: Path, used: Toolchain, small: Path, hashed: list[bytes], tmp_path: Path
) -> None:
    """But not of a tree that the guest can write, nor of another file at the same path."""

    def found(*, fixed: bool) -> Pairing | str:
        lease = Compilers({"root": Tree(small, None, fixed=fixed)}, [used], tmp_path / "cache")
        return lease.find(Place((ROOT,), ()), LINKER.encode(), PATH)

    first = found(fixed=True)
    assert isinstance(first, Pairing)
    assert found(fixed=True) == first
    assert len(hashed) == 1
    assert found(fixed=False) == found(fixed=False) == first
    assert len(hashed) == 3
    shutil.copy(root / f"usr/bin/{TRIPLET}-as", small / LINKER.strip("/"))
    assert isinstance(found(fixed=True), str)
    assert len(hashed) == 4


def test_a_guest_does_not_fill_what_is_remembered(
    used: Toolchain, small: Path, hashed: list[bytes], tmp_path: Path
) -> None:
    """Neither by calling other programs, nor by mounting the same ones at many places."""
    cache = tmp_path / "cache"

    def find(program: str, *mounts: Mount) -> None:
        lease = Compilers({"root": Tree(small, None, fixed=True)}, [used], cache)
        lease.find(Place((ROOT, *mounts), ()), program.encode(), PATH)

    find(LINKER)
    known = (cache / "remembered.json").read_bytes()
    for number in range(3):
        find("/usr/bin/file")
        find(f"/at{number}/{TRIPLET}-ld.bfd", Mount("root", b"usr/bin", f"/at{number}".encode()))
    assert hashed == [LINKER.encode(), *[b"/usr/bin/file"] * 3]
    assert (cache / "remembered.json").read_bytes() == known


@pytest.fixture(params=["mapped-file", "mapped-xattr"])
def sysroot(request: pytest.FixtureRequest, tmp_path: Path, root: Path) -> GuestShare:
    """The image's compiler, staged into a share with links as a guest makes them."""
    share = GuestShare(tmp_path / "share", request.param)
    for folder in ("usr", "usr/bin", "usr/lib", "usr/lib/gcc", f"usr/lib/gcc/{TRIPLET}",
                   f"usr/{PARTS}", "usr/include", "opt", "opt/bin"):  # fmt: skip
        share.folder(folder)
    for name in ("gcc-12", "as", "ld.bfd"):
        data = (root / f"usr/bin/{TRIPLET}-{name}").read_bytes()
        share.file(f"usr/bin/{TRIPLET}-{name}", data, 0o755)
    for name in ("cc1", "collect2"):
        share.file(f"usr/{PARTS}/{name}", (root / f"usr/{PARTS}/{name}").read_bytes(), 0o755)
    share.link("usr/bin/gcc", f"{TRIPLET}-gcc-12")
    share.link("usr/bin/cc", "/usr/bin/gcc")
    share.link("usr/bin/as", f"{TRIPLET}-as")
    share.link("usr/bin/ld", f"{TRIPLET}-ld.bfd")
    share.link("bin", "usr/bin")
    return share


def examined(share: GuestShare, used: Toolchain, program: bytes = b"/bin/cc") -> Pairing | Mismatch:
    trees = {"work": Tree(share.path, share.model)}
    mounts = [Mount("work", b"", b"/"), Mount(None, b"", b"/hidden")]
    path = [b"/opt/bin", b"/usr/bin"]
    if (share.path / "see-hidden").exists():
        path = [b"/hidden/bin", *path]
    return toolchain.pair(GuestFiles(trees, mounts), program, path, [used])


def test_a_sysroots_compiler_is_known(sysroot: GuestShare, used: Toolchain) -> None:
    found = examined(sysroot, used)
    assert isinstance(found, Pairing), found
    # What the guest lacks, the host does not lend it.
    names = {os.path.basename(at).decode() for _, at in found.binds}
    wanted = {"cc1", "collect2", f"{TRIPLET}-gcc-12", f"{TRIPLET}-as", f"{TRIPLET}-ld.bfd"}
    assert names == wanted
    assert f"/usr/{PARTS}/cc1plus".encode() in found.seen


def replaced_part(share: GuestShare) -> None:
    path = f"usr/{PARTS}/cc1"
    data = bytearray((share.path / path).read_bytes())
    section = Elf(data).section(b".text")
    assert section is not None
    data[section.offset + 100] ^= 1
    share.file(path, bytes(data))


CHANGES = {
    "cc1": replaced_part,
    "as": lambda share: share.file("opt/bin/as", "#!/bin/sh\n", 0o755),
    "ld": lambda share: share.file(f"usr/{PARTS}/ld", "#!/bin/sh\n", 0o755),
    "specs": lambda share: share.file(f"usr/{PARTS}/specs", "*cpp:\n-DX\n"),
    "collect-ld": lambda share: share.file(f"usr/{PARTS}/collect-ld", "x", 0o755),
    "headers": lambda share: share.link("usr/include/c++", "/opt") or share.folder("opt/12"),
    "PATH": lambda share: share.file("see-hidden", ""),
    "include": lambda share: share.folder(f"usr/{TRIPLET}") or share.folder(
        f"usr/{TRIPLET}/include"),
}  # fmt: skip


@pytest.mark.parametrize("part", CHANGES)
def test_a_part_that_differs_is_named(sysroot: GuestShare, used: Toolchain, part: str) -> None:
    CHANGES[part](sysroot)  # type: ignore[no-untyped-call]
    found = examined(sysroot, used)
    assert isinstance(found, Mismatch)
    assert found.part == part, found
    assert found.guest != found.host


def test_a_compiler_of_another_package_is_named(
    sysroot: GuestShare, used: Toolchain, root: Path
) -> None:
    data = (root / f"usr/bin/{TRIPLET}-gcc-12").read_bytes()
    other = data.replace(b"Debian 12.2.0-14+deb12u1", b"Debian 12.2.0-15+other12")
    sysroot.file(f"usr/bin/{TRIPLET}-gcc-12", other)
    found = examined(sysroot, used)
    assert isinstance(found, Mismatch)
    assert "12.2.0-15+other12" in found.guest
    assert "12.2.0-14" in found.host


# Calls in a view


class Bench:
    """A view of the image and of a folder at /work, which keeps what calls write."""

    def __init__(self, view: View, used: Toolchain, trees: dict[str, Tree]) -> None:
        self.view, self.used, self.trees = view, used, trees
        self.mounts = (ROOT, Mount("work", b"", b"/work"))

    @property
    def work(self) -> Path:
        return self.trees["work"].path

    def call(self, line: str, folder: str = "/usr/bin") -> Outcome:
        argv = [word.encode() for word in line.split()]
        program = f"{folder}/".encode() + argv[0]
        files = GuestFiles(self.trees, self.mounts)
        pairing = toolchain.pair(files, program, [folder.encode()], [self.used])
        assert isinstance(pairing, Pairing), pairing
        made = toolchain.translate(pairing, program, argv, {b"PATH": folder.encode()})
        assert isinstance(made, Command), made
        binds = tuple(Bind(source, at) for source, at in made.binds)
        outcome = self.view.call(
            Call(made.program, made.argv, made.environ, b"/work", self.mounts, binds=binds)
        )
        assert outcome.trouble == ""
        for written in outcome.written:
            (self.work / os.fsdecode(written.path).removeprefix("/work/")).write_bytes(written.data)
        return outcome


@pytest.fixture
def bench(used: Toolchain, root: Path, tmp_path: Path, places: Places) -> Iterator[Bench]:
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.c").write_text("#include <stdio.h>\nint main(void) { puts(__FILE__); return 0; }\n")
    (work / "a.cc").write_text("#include <string>\nint main() { return std::string().size(); }\n")
    trees = {"root": Tree(root, None, fixed=True), "work": Tree(work)}
    with View(trees, used.path, cache_dir=places.cache) as view:
        yield Bench(view, used, trees)


def test_objects_and_programs_are_the_targets(bench: Bench) -> None:
    for line in ("gcc -O2 -g -c a.c", "gcc -o a a.o", "gcc -static -o b a.c", "ar cr liba.a a.o",
                 "g++ -o c a.cc", "strip a.o"):  # fmt: skip
        outcome = bench.call(line)
        assert (outcome.status, outcome.stderr) == (0, b""), line
        for written in outcome.written:
            assert toolchain.check_object(written.data, ARCH) == ""
            assert b"/.tc" not in written.data
            assert b"gcc-cross" not in written.data
    assert Elf((bench.work / "a").read_bytes()).interpreter == b"/lib/ld-linux.so.3"
    assert Elf((bench.work / "c").read_bytes()).needed[0] == "libstdc++.so.6"


@pytest.mark.parametrize(("folder", "prefix"), [("/usr/bin", "/usr"), ("/tools/bin", "/tools")])
def test_headers_have_the_names_that_the_guests_compiler_gives_them(
    bench: Bench, folder: str, prefix: str
) -> None:
    words = bench.call("g++ -M a.cc", folder).stdout.decode().replace("\\\n", " ").split()
    assert words[:2] == ["a.o:", "a.cc"]
    known = (f"{prefix}/include/c++/12/", f"{prefix}/include/{TRIPLET}/c++/12/", "/usr/include/",
             f"{prefix}/{PARTS}/include/")  # fmt: skip
    for name in words[2:]:
        assert name.startswith(known), name
    assert f"{prefix}/include/c++/12/string" in words
    assert f"{prefix}/{PARTS}/include/stddef.h" in words


def test_complaints_are_those_of_the_guests_programs(bench: Bench) -> None:
    missing = bench.call("gcc -c none.c")
    assert missing.stderr.startswith(b"cc1: fatal error: none.c: No such file")
    assert bench.call("gcc -fnone -c a.c").stderr.startswith(b"gcc: error: ")
    link = bench.call("gcc a.c -lnone")
    assert link.stderr.startswith(b"/usr/bin/ld: cannot find -lnone")
    assert bench.call("gcc --version").stdout.startswith(b"gcc (Debian 12.2.0-14+deb12u1) 12.2.0\n")


def test_a_toolchain_works_wherever_it_lies(bench: Bench, tmp_path: Path, places: Places) -> None:
    other = tmp_path / "some where" / "else"
    shutil.copytree(bench.used.path, other)
    with View(bench.trees, other, cache_dir=places.cache) as view:
        moved = Bench(view, Toolchain.load(other), bench.trees)
        outcome = moved.call("gcc -c a.c")
    assert (outcome.status, outcome.stderr) == (0, b"")
    assert outcome.written[0].data == bench.call("gcc -c a.c").written[0].data


def test_a_precompiled_header_of_the_guests_is_noticed(bench: Bench) -> None:
    (bench.work / "own.h").write_text("int x;\n")
    (bench.work / "own.h.gch").write_bytes(b"gpcC.014" + bytes(100))
    (bench.work / "b.c").write_text('#include "own.h"\n')
    outcome = bench.call("gcc -c b.c")
    assert outcome.status == 1
    assert toolchain.doubt(outcome.status, outcome.stderr) == "a precompiled header"
