"""The steps of an image: the cache, its locks, and the formats that we write ourselves."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import pytest

from guestctl.errors import ImageError
from guestctl.imaging.bytecode import add_bytecode
from guestctl.imaging.filetree import Content, FileTree
from guestctl.imaging.initramfs import Member, newc, stub_names, write_initramfs
from guestctl.imaging.kernel import refused_symbols, uimage
from guestctl.imaging.workshop import Progress, Step, Workshop


def workshop(folder: Path, events: list[Progress] | None = None) -> Workshop:
    return Workshop(folder, jobs=1, report=(events if events is not None else []).append)


def touch(step: Step) -> None:
    (step.out / "made").write_text("x")


def test_a_step_is_made_once_for_the_same_facts(tmp_path: Path) -> None:
    events: list[Progress] = []
    shop = workshop(tmp_path, events)
    place = shop.make("a", {"x": 1}, touch)
    assert shop.make("a", {"x": 1}, touch) == place
    assert shop.make("a", {"x": 2}, touch) != place
    assert [event.state for event in events] == ["starts", "done", "cached", "starts", "done"]


def test_a_failed_program_shows_the_logs_end_and_leaves_nothing(tmp_path: Path) -> None:
    def work(step: Step) -> None:
        step.run(["sh", "-c", "seq 100; echo the reason >&2; exit 3"])

    with pytest.raises(ImageError, match="the reason") as caught:
        workshop(tmp_path).make("a", {}, work)
    assert "sh ended with status 3" in str(caught.value)
    assert "\n  50\n" not in str(caught.value)
    log = Path(caught.value.hint.removeprefix("the whole log is "))
    assert "\n50\n" in log.read_text()
    assert not [p for p in (tmp_path / "steps").iterdir() if not p.name.endswith(".lock")]


def test_a_full_disk_gets_one_line(tmp_path: Path) -> None:
    def program(step: Step) -> None:
        step.run(["dd", "if=/dev/zero", "of=/dev/full", "count=1"])

    def ours(step: Step) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    for work in (program, ours):
        with pytest.raises(ImageError, match=r"^the disk is full: .* MiB left$"):
            workshop(tmp_path).make("a", {}, work)


def test_a_program_has_a_deadline(tmp_path: Path) -> None:
    def work(step: Step) -> None:
        step.run(["sleep", "60"], deadline=0.6)

    began = time.monotonic()
    with pytest.raises(ImageError, match=r"sleep took more than"):
        workshop(tmp_path).make("a", {}, work)
    assert time.monotonic() - began < 50


def test_a_failure_ends_the_other_steps(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    caught: list[BaseException] = []

    def slow() -> None:
        try:
            shop.make("slow", {}, lambda step: step.run(["sleep", "60"]))
        except ImageError as error:
            caught.append(error)

    thread = threading.Thread(target=slow)
    thread.start()
    with pytest.raises(ImageError):
        shop.make("bad", {}, lambda step: step.run(["false"]))
    thread.join(50)
    assert "another step failed" in str(caught[0])


def test_two_builders_make_a_step_once(tmp_path: Path) -> None:
    count: list[int] = []

    def work(step: Step) -> None:
        count.append(1)
        time.sleep(0.5)
        touch(step)

    threads = [
        threading.Thread(target=lambda: workshop(tmp_path).make("a", {}, work)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert count == [1]


KILLED = """
import sys
from pathlib import Path
from guestctl.imaging.workshop import Workshop
def work(step):
    (step.out / "half").write_text("half")
    print("made half", flush=True)
    step.run(["sleep", "60"])
Workshop(Path(sys.argv[1]), jobs=1, report=lambda event: None).make("a", {}, work)
"""


def test_a_killed_build_leaves_nothing_that_counts_and_starts_clean(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout and builder.stdout.readline() == "made half\n"
        time.sleep(0.3)
        os.kill(builder.pid, signal.SIGKILL)
        builder.wait(50)
    # The lock is free once its program, which is told to end, has done so.
    began = time.monotonic()
    place = workshop(tmp_path).make("a", {}, touch)
    assert [path.name for path in place.iterdir()] == ["made"]
    assert time.monotonic() - began < 50


def test_what_killed_builds_left_is_swept_but_not_what_is_being_made(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    left = tmp_path / "steps" / ".old-abc.part"
    (left / "out").mkdir(parents=True)
    (tmp_path / "steps" / ".old-abc.lock").touch()

    def work(step: Step) -> None:
        workshop(tmp_path).sweep()
        touch(step)

    assert (shop.make("a", {}, work) / "made").exists()
    assert not left.exists()


def test_the_initramfs_is_what_cpio_reads(tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_bytes(b"\x7fELF" + os.urandom(1001))
    names = stub_names("arm-linux-gnueabi", ["12"])
    write_initramfs(init, init, names, tmp_path / "one")
    write_initramfs(init, init, names, tmp_path / "two")
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "two").read_bytes()
    listing = subprocess.run(
        ["cpio", "-itvn", "--quiet"], input=data, capture_output=True, timeout=30, check=True
    ).stdout.decode()
    links = [line.split()[-3] for line in listing.splitlines() if " -> ../stub" in line]
    assert {link.removeprefix("extra/tools/offload/bin/") for link in links} == set(names)
    assert {"cc", "gcc-12", "arm-linux-gnueabi-g++-12", "arm-linux-gnueabi-strip"} <= set(names)
    lines = {line.split()[-1]: line for line in listing.splitlines()}
    assert lines["init"].startswith("-rwxr-xr-x")
    assert lines["dev/console"].startswith("crw-------")
    assert "5,   1" in lines["dev/console"]
    assert all(line.split()[2:4] == ["0", "0"] for line in lines.values())
    assert {"dev", "proc", "sys", "image", "scratch"} <= set(lines)
    (tmp_path / "x").mkdir()
    subprocess.run(
        ["cpio", "-i", "--quiet", "init"], input=data, cwd=tmp_path / "x", timeout=30, check=True
    )
    assert (tmp_path / "x/init").read_bytes() == init.read_bytes()


def test_an_archive_of_nothing_is_a_trailer() -> None:
    data = newc([Member("a", stat.S_IFDIR | 0o755)])
    assert data.count(b"070701") == 2
    assert len(data) % 4 == 0


def test_the_wrapped_kernel_has_the_checksums_that_u_boot_wants() -> None:
    wrapped = uimage(b"kernel" * 100, 0x8000)
    header, data = wrapped[:64], wrapped[64:]
    assert int.from_bytes(header[:4], "big") == 0x27051956
    blank = header[:4] + bytes(4) + header[8:]
    assert int.from_bytes(header[4:8], "big") == zlib.crc32(blank)
    assert int.from_bytes(header[24:28], "big") == zlib.crc32(data)
    assert int.from_bytes(header[16:20], "big") == 0x8000


def test_symbols_that_the_kernel_did_not_take_are_named() -> None:
    asked = "# words\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\n"
    got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n"
    assert refused_symbols(asked, got) == ["CONFIG_B=y", "# CONFIG_C is not set"]


def package(path: Path) -> Path:
    """A tar such as packages hold: owners, setuid, links, a folder outside the merged /usr."""
    with tarfile.open(path, "w") as tar:
        for name in ("./", "./bin/", "./usr/", "./usr/share/", "./usr/share/doc/"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, mode in (("./bin/su", 0o4755), ("./usr/share/doc/README", 0o644),
                           ("./usr/share/doc/copyright", 0o644)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.mode, info.size, info.gid = mode, 3, 42
            tar.addfile(info, io.BytesIO(b"abc"))
        info = tarfile.TarInfo("./bin/a-hard-link")
        info.type, info.linkname = tarfile.LNKTYPE, "./bin/su"
        tar.addfile(info)
        info = tarfile.TarInfo("./bin/link")
        info.type, info.linkname = tarfile.SYMTYPE, "su"
        tar.addfile(info)
    return path


def test_a_tree_keeps_owners_and_modes_and_merges_usr(tmp_path: Path) -> None:
    tree = FileTree()
    files = tree.add_tar(package(tmp_path / "p.tar"), keep=("copyright",), drop=("usr/share/doc/",))
    assert files == ["usr/bin/su", "usr/share/doc/copyright"]
    tree.file("x/y/z", b"deep")
    stream = io.BytesIO()
    tree.write(stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        members = {member.name: member for member in tar}
        assert list(members) == sorted(members)
        # The first name of a file carries it, whichever the package had first.
        first = members["usr/bin/a-hard-link"]
        assert (first.mode, first.uid, first.gid, first.mtime) == (0o4755, 0, 42, 0)
        assert members["usr/bin/su"].islnk()
        assert members["usr/bin/su"].linkname == "usr/bin/a-hard-link"
        assert members["usr/bin/link"].linkname == "su"
        assert "usr/share/doc/README" not in members
        assert members["x/y"].isdir()
        deep = tar.extractfile("x/y/z")
        assert deep and deep.read() == b"deep"


def test_links_are_followed_inside_the_tree(tmp_path: Path) -> None:
    tree = FileTree()
    tree.file("usr/bin/gcc-12", b"x")
    tree.link("usr/bin/gcc", "gcc-12")
    tree.link("usr/bin/cc", "/etc/alternatives/cc")
    tree.link("etc/alternatives/cc", "/bin/gcc")
    tree.link("usr/bin/loop", "loop")
    assert tree.resolve("/bin/cc")[-1] == "usr/bin/gcc-12"
    assert tree.resolve("/bin/none") == []
    with pytest.raises(ImageError, match="loop"):
        tree.resolve("usr/bin/loop")


def test_a_content_that_was_cut_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    with pytest.raises(ImageError, match="cut short"):
        Content(file, 0, 9).copy(io.BytesIO())


def test_the_tar_of_a_tree_is_the_same_each_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tree = FileTree()
        tree.add_tar(package(tmp_path / name / "p.tar"))
        stream = io.BytesIO()
        tree.write(stream)
        digests.add(hashlib.sha256(stream.getvalue()).hexdigest())
    assert len(digests) == 1


MODULE = "usr/lib/python3.11/pack/module"


def bytecode(folder: Path, text: bytes) -> bytes:
    """What the step of a root makes of a module."""
    tree, made = FileTree(), []
    tree.file(f"{MODULE}.py", text)
    tree.file("usr/lib/python3/dist-packages/other.txt", b"not Python\n")

    def work(step: Step) -> None:
        add_bytecode(step, tree, "python3.11")
        places = sorted(path for path in tree.nodes if path.endswith(".pyc"))
        assert places == ["usr/lib/python3.11/pack/__pycache__/module.cpython-311.pyc"]
        made.append(tree.extract(places[0], folder / "module.pyc").read_bytes())

    workshop(folder).make("a", {"text": text.decode()}, work)
    return made[0]


def test_bytecode_is_what_python_takes_and_the_same_each_time(tmp_path: Path) -> None:
    text = (
        b"WORDS = {'one', 'two', 'three'}\nprint(__import__('sys')._getframe().f_code.co_filename)"
    )
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(bytecode(tmp_path / name, text))
    assert made[0] == made[1]
    time_and_size = made[0][8:16]
    assert time_and_size == bytes(4) + len(text).to_bytes(4, "little")
    done = subprocess.run(
        ["python3.11", tmp_path / "one/module.pyc"], check=False, capture_output=True, timeout=60
    )
    assert done.stdout == f"/{MODULE}.py\n".encode(), done.stderr


def test_a_module_that_is_none_fails_the_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="SyntaxError"):
        bytecode(tmp_path, b"def\n")
