"""Archives: every dialect in, what other archivers read of ours, and broken or hostile ones."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from guestctl.archive.sparse import HOLE, data_regions
from guestctl.errors import ArchiveError, GuestctlError
from guestctl.translate import Limits, collect, list_tree, stage
from guestctl.tree.state import is_partial
from tests.corpus import Member, cpio_newc, directory, every_type, hardlink, symlink, tar_bytes


def run(*argv: str | Path, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, check=True, capture_output=True, timeout=60, **options)


def names(tree: Path) -> set[str]:
    return {os.fsdecode(entry.path) for entry in list_tree(tree)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Plain host files with long names, holes, links."""
    source = tmp_path / "source"
    deep = source / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    (source / ("l" * 150)).symlink_to("t" * 150)
    (source / "a").write_bytes(b"a" * 1000)
    os.link(source / "a", source / "b")
    with open(source / "holes", "wb") as out:
        for at in (0, 1 << 20, 3 << 20, 5 << 20, 7 << 20, 9 << 20):
            out.seek(at)
            out.write(b"data")
        out.truncate(12 << 20)
    return source


def same(tree: Path, source: Path) -> None:
    for path in source.rglob("*"):
        copy = tree / path.relative_to(source)
        if path.is_symlink():
            assert copy.read_bytes() == os.fsencode(os.readlink(path))
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()
    assert (tree / "a").samefile(tree / "b")


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix"])
def test_gnu_tar_with_holes(source, tmp_path, form):
    archive = tmp_path / "a.tar"
    run("tar", f"--format={form}", "-S", "-cf", archive, "-C", source, ".")
    stage(archive, tmp_path / "tree")
    same(tmp_path / "tree", source)
    assert (tmp_path / "tree/holes").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse_versions(source, tmp_path, version):
    archive = tmp_path / "a.tar"
    run(
        "tar",
        "--format=pax",
        f"--sparse-version={version}",
        "-S",
        "-cf",
        archive,
        "-C",
        source,
        ".",
    )
    stage(archive, tmp_path / "tree")
    same(tmp_path / "tree", source)


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_small_dialects(tmp_path, form):
    source = tmp_path / "s"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(b"x")
    run("tar", f"--format={form}", "-cf", tmp_path / "a.tar", "-C", source, ".")
    stage(tmp_path / "a.tar", tmp_path / "tree")
    assert names(tmp_path / "tree") == {"", "d", "d/f"}


@pytest.mark.parametrize("form", ["pax", "gnutar", "ustar", "newc", "odc", "bin"])
def test_bsdtar_and_cpio(source, tmp_path, form):
    if form in ("ustar", "odc", "bin"):
        shutil.rmtree(source / ("d" * 120))
        os.unlink(source / ("l" * 150))
    archive = tmp_path / "a"
    run("bsdtar", f"--format={form}", "-cf", archive, "-C", source, ".")
    stage(archive, tmp_path / "tree")
    same(tmp_path / "tree", source)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "lzma", "zst", "lz4", "Z"])
def test_compressions(tmp_path, kind):
    plain = tar_bytes(every_type())
    (tmp_path / "plain").write_bytes(plain)
    archive = tmp_path / f"a.tar.{kind}"
    if kind == "gz":  # of two members, and padded
        half = len(plain) // 2
        archive.write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]) + bytes(512))
    elif kind == "bz2":
        archive.write_bytes(bz2.compress(plain))
    elif kind in ("xz", "lzma"):
        form = lzma.FORMAT_XZ if kind == "xz" else lzma.FORMAT_ALONE
        archive.write_bytes(lzma.compress(plain, form))
    else:
        flag = {"zst": "--zstd", "lz4": "--lz4", "Z": "--compress"}[kind]
        run("bsdtar", flag, "-cf", archive, f"@{tmp_path / 'plain'}")
    stage(archive, tmp_path / "tree")
    with open(archive, "rb") as stream:
        stage(stream, tmp_path / "tree2")
    assert names(tmp_path / "tree") == names(tmp_path / "tree2")
    assert (tmp_path / "tree/dir/file").read_bytes() == b"hello\n"


def ar(*parts: tuple[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, data in parts:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


@pytest.mark.parametrize("kind", ["", ".xz", ".gz"])
def test_a_debian_package(tmp_path, kind):
    data = tar_bytes([directory("./usr"), Member("./usr/file", data=b"x")])
    data = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}[kind](data)
    package = ar(("debian-binary", b"2.0\n"), ("control.tar", b"odd"), ("data.tar" + kind, data))
    (tmp_path / "p.deb").write_bytes(package)
    stage(tmp_path / "p.deb", tmp_path / "tree")
    assert names(tmp_path / "tree") == {"", "usr", "usr/file"}
    (tmp_path / "p.deb").write_bytes(package[: -len(data) // 2])
    with pytest.raises(ArchiveError):
        stage(tmp_path / "p.deb", tmp_path / "tree2")


def test_cpio_links_whose_content_comes_last(tmp_path):
    rows = (
        ("a", 0o100755, 7, 3, b""),
        ("b", 0o100755, 7, 3, b""),
        ("c", 0o100755, 7, 3, b"content"),
        ("sock", 0o140755, 8, 1, b""),
    )
    (tmp_path / "a.cpio").write_bytes(cpio_newc(*rows))
    stage(tmp_path / "a.cpio", tmp_path / "tree")
    assert (tmp_path / "tree/a").read_bytes() == b"content"
    assert (tmp_path / "tree/a").stat().st_nlink == 3
    with pytest.raises(ArchiveError):
        (tmp_path / "b.cpio").write_bytes(cpio_newc(("../x", 0o100755, 7, 1, b"")))
        stage(tmp_path / "b.cpio", tmp_path / "tree")


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([("b", 0o053755, 7, 1, b"")], "mode 53755 has no file type"),
        ([("s", 0o120777, 7, 1, b"")], "a link target of 0 bytes"),
        ([("s", 0o120777, 7, 1, b"a\0b")], "a link target with a NUL byte"),
        (
            [("s", 0o120777, 7, 2, b"x"), ("t", 0o100644, 7, 2, b"a\0b")],
            "a hard link with content to a symlink",
        ),
        (
            [("p", 0o010644, 7, 2, b""), ("t", 0o100644, 7, 2, b"ab")],
            "a hard link with content to a fifo",
        ),
    ],
)
def test_a_cpio_that_no_tree_can_hold(tmp_path, model, rows, why):
    """It is refused: the tree could not be collected, or would hold something else."""
    with pytest.raises(ArchiveError, match=why):
        stage(io.BytesIO(cpio_newc(*rows)), tmp_path / "tree", security_model=model)


@pytest.mark.parametrize("form", ["odc", "newc", "crc", "bin"])
def test_a_cpio_that_is_damaged_between_members_loses_none(tmp_path, form):
    """libarchive goes on at the next header that it finds, whatever it has passed over.

    Nor does it look at the magic of the binary form: then nothing is lost.
    """
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "in" / name).write_text(name * 1000)
    argv = ["cpio", "-o", "-H", form, "--quiet"]
    data = subprocess.run(
        argv, cwd=tmp_path / "in", input=b"a\nb\nc\n", stdout=subprocess.PIPE, check=True
    ).stdout
    starts = [at for at in range(len(data)) if data.startswith(data[:6], at)]
    if form == "bin":
        starts = [at for at in range(0, len(data), 2) if data.startswith(data[:2], at)]
    assert len(starts) == 4  # the end is one, too
    for number, at in enumerate(starts[1:]):
        for bad in (data[:at] + b"X" + data[at + 1 :], data[:at] + b"junk" * 8 + data[at:]):
            tree = tmp_path / f"{number}{len(bad)}"
            try:
                stage(io.BytesIO(bad), tree)
            except ArchiveError:
                continue
            assert form == "bin" and len(bad) == len(data)
            assert [entry.path for entry in list_tree(tree)] == [b"", b"a", b"b", b"c"]


@pytest.mark.parametrize("form", ["hpodc", "hpbin"])
def test_a_cpio_of_hp_ux_is_refused(tmp_path, form):
    """What is a device's number there reads as a size, and members would be lost in it."""
    argv = ["cpio", "-o", "-H", form, "--quiet"]
    run = subprocess.run(argv, cwd="/dev", input=b"null\n", stdout=subprocess.PIPE, check=True)
    with pytest.raises(ArchiveError, match="null: a character device with content"):
        stage(io.BytesIO(run.stdout), tmp_path / "tree")


def test_a_cpio_of_the_kernels_program(tmp_path):
    """gen_init_cpio ends link targets with a NUL byte, and counts it."""
    source = io.BytesIO(cpio_newc(("s", 0o120777, 7, 1, b"target\0")))
    stage(source, tmp_path / "tree")
    (_, link) = list_tree(tmp_path / "tree")
    assert link.target == b"target"


# What we write, read by others


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_others_read_ours_without_a_word(tmp_path, program):
    stage(io.BytesIO(tar_bytes(every_type())), tmp_path / "tree")
    collect(tmp_path / "tree", tmp_path / "ours.tar")
    (tmp_path / "theirs.tar").write_bytes(tar_bytes(every_type()))
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    listed = [run(program, "-tvf", tmp_path / name, env=env) for name in ("ours.tar", "theirs.tar")]
    assert listed[0].stderr == b""
    ours, theirs = (sorted(done.stdout.split(b"\n")) for done in listed)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        # A hard link's own header says nothing: ours has what the file has.
        assert mine == other or (mine[:1] == b"h" and mine.split()[-4:] == other.split()[-4:])


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_others_unpack_our_long_and_odd_names(tmp_path, program):
    deep = "d" * 200
    wanted = [
        directory(deep),
        Member(f"{deep}/{'e' * 200}", data=b"long"),
        Member(f"{deep}/{'ü' * 100}", data=b"utf-8"),
        Member(f"{deep}/{chr(0xDCFF)}{'f' * 200}", data=b"bytes"),
        symlink("link", "t" * 300),
    ]
    stage(io.BytesIO(tar_bytes(wanted)), tmp_path / "tree")
    with open(tmp_path / "tree" / deep / "holes", "wb") as out:
        out.truncate(1 << 24)
    meta = tmp_path / "tree" / deep / ".virtfs_metadata"
    shutil.copy(meta / ("e" * 200), meta / "holes")
    collect(tmp_path / "tree", tmp_path / "ours.tar")
    (tmp_path / "out").mkdir()
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = run(program, "-xf", tmp_path / "ours.tar", "-C", tmp_path / "out", env=env)
    assert done.stderr == b""
    unpacked = tmp_path / "out" / deep
    assert set(os.listdir(unpacked)) - {"holes"} == {"e" * 200, "ü" * 100, "\udcff" + "f" * 200}
    assert (unpacked / "holes").stat().st_size == 1 << 24
    assert (unpacked / "holes").stat().st_blocks == 0
    assert os.readlink(tmp_path / "out/link") == "t" * 300


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_compressed_out(tmp_path, kind):
    data = random.Random(1).randbytes(5 << 20)
    stage(io.BytesIO(tar_bytes([Member("f", data=data)])), tmp_path / "tree")
    out = tmp_path / f"o.tar.{kind}"
    collect(tmp_path / "tree", out)
    listed = run("tar", "-tf", out)
    assert listed.stdout == b"./\n./f\n" and not listed.stderr
    stage(out, tmp_path / "again")
    assert (tmp_path / "again/f").read_bytes() == data


# Broken ones


def broken(data: bytes, tmp_path: Path, limits: Limits | None = None) -> GuestctlError:
    limits = limits or Limits()
    tree = tmp_path / "tree"
    with pytest.raises(ArchiveError) as caught:
        stage(io.BytesIO(data), tree, limits=limits)
    assert "\n" not in str(caught.value)
    with pytest.raises(GuestctlError):
        collect(tree, io.BytesIO()) if is_partial(tree) else pytest.fail("not marked")
    return caught.value


def test_cut_short_anywhere(tmp_path):
    whole = tar_bytes(
        [
            directory("d"),
            Member("d/f", data=b"x" * 2000),
            symlink("s", "t" * 200),
            Member("e", data=b"y"),
        ]
    )
    end = len(whole.rstrip(b"\0"))
    end += -end % 512
    for at in sorted({*range(1, end + 1, 97), *range(512, end + 1, 512)}):
        error = broken(whole[:at], tmp_path)
        assert at < 512 or "cut short" in str(error)
    assert "end marker" in str(broken(whole[:end], tmp_path))
    broken(b"", tmp_path)


@pytest.mark.parametrize("squeeze", [gzip.compress, lzma.compress, bz2.compress])
def test_compressed_and_cut_short(tmp_path, squeeze):
    whole = squeeze(tar_bytes([Member("f", data=random.Random(1).randbytes(30_000))]))
    for at in (3, 20, 1000, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        broken(whole[:at], tmp_path)


def test_zstd_cut_short(tmp_path):
    (tmp_path / "p").write_bytes(tar_bytes([Member("f", data=random.Random(1).randbytes(30_000))]))
    run("bsdtar", "--zstd", "-cf", tmp_path / "z", f"@{tmp_path / 'p'}")
    whole = (tmp_path / "z").read_bytes()
    for at in (20, 1000, len(whole) - 5):
        broken(whole[:at], tmp_path)


def test_flipped_bytes_never_crash(tmp_path):
    whole = tar_bytes(every_type())
    chance = random.Random(5)
    for turn in range(100):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            stage(io.BytesIO(bytes(data)), tmp_path / f"t{turn}")
        except GuestctlError as error:
            assert "\n" not in str(error)
        assert set(os.listdir(tmp_path)) <= {f"t{n}" for n in range(turn + 1)}


@pytest.mark.parametrize("data", [b"x", b"hello world" * 100, b"PK\3\4" + bytes(600), b"\x1f\x8b"])
def test_no_archive_at_all(tmp_path, data):
    broken(data, tmp_path)


def test_limits(tmp_path):
    many = tar_bytes([Member(f"f{n}") for n in range(20)])
    assert "entries" in str(broken(many, tmp_path, Limits(entries=10)))
    large = tar_bytes([Member("f", data=bytes(5000))])
    assert "bytes" in str(broken(large, tmp_path, Limits(bytes=4000)))
    deep = tar_bytes([Member("a/" * 20 + "f")])
    assert "deep" in str(broken(deep, tmp_path, Limits(depth=10)))


def test_a_bomb(tmp_path):
    bomb = gzip.compress(tar_bytes([Member("f", data=bytes(280 << 20))]), 9)
    assert "times its size" in str(broken(bomb, tmp_path, Limits(ratio=100)))


def test_a_sparse_bomb(tmp_path):
    pax = (
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "f"),
        ("GNU.sparse.realsize", str(1 << 60)),
    )
    error = broken(tar_bytes([Member("x", data=b"0\n".ljust(512, b"\0"), pax=pax)]), tmp_path)
    assert "bytes" in str(error)


@pytest.mark.parametrize(
    "sparse_map", [b"1\n0\n", b"2\n0\n5\n2\n5\n", b"x\n", b"9" * 600, b"1\n5\n-1\n"]
)
def test_broken_sparse_maps(tmp_path, sparse_map):
    pax = (
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "f"),
        ("GNU.sparse.realsize", "100"),
    )
    broken(tar_bytes([Member("x", data=sparse_map.ljust(1024, b"\0"), pax=pax)]), tmp_path)


@pytest.mark.parametrize("key", ["mtime", "uid", "size", "GNU.sparse.map"])
def test_broken_pax_values(tmp_path, key):
    broken(tar_bytes([Member("x", data=b"d", pax=((key, "nonsense"),))]), tmp_path)


def test_times_out_of_range(tmp_path):
    broken(tar_bytes([Member("x", pax=(("mtime", "9" * 19),))]), tmp_path)


def test_huge_extended_headers(tmp_path):
    header = bytearray(tar_bytes([Member("x")])[:512])
    header[156:157] = b"x"
    header[124:136] = b"77777777777\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    assert "extended header" in str(broken(bytes(header) + bytes(1024), tmp_path))


def test_base256_numbers(tmp_path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(Member("f", uid=4294967294, mtime=-5).info())
    stage(io.BytesIO(data.getvalue()), tmp_path / "tree")
    (entry,) = [entry for entry in list_tree(tmp_path / "tree") if entry.path]
    assert (entry.uid, entry.mtime) == (4294967294, -5 * 10**9)


def test_global_headers(tmp_path):
    data = io.BytesIO()
    with tarfile.open(
        fileobj=data, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "77", "comment": "c"}
    ) as tar:
        tar.addfile(Member("f").info())
    stage(io.BytesIO(data.getvalue()), tmp_path / "tree")
    (entry,) = [entry for entry in list_tree(tmp_path / "tree") if entry.path]
    assert entry.uid == 77


def test_from_a_pipe(tmp_path):
    data = tar_bytes([Member("f", data=bytes(300_000)), hardlink("g", "f")])
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with open(write, "wb") as out:
            out.write(data)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as stream:
        assert stage(stream, tmp_path / "tree").entries == 2
    os.waitpid(child, 0)


def test_a_gnu_dump_of_empty_directories(source, tmp_path):
    """Each directory has a payload, the list of its names: of an empty one, a block of zeros."""
    (source / "empty" / "too").mkdir(parents=True)
    archive = tmp_path / "dump.tar"
    run("tar", "-cf", archive, "--listed-incremental", tmp_path / "snapshot", "-C", source, ".")
    stage(archive, tmp_path / "tree")
    listed = {str(path.relative_to(source)) for path in source.rglob("*")}
    assert {"empty", "empty/too"} < listed
    assert names(tmp_path / "tree") == listed | {""}


def test_names_cut_at_a_slash_are_no_directories(tmp_path):
    """The header of a long name holds its first 100 bytes, which may end in a slash."""
    for length in range(90, 112):
        name = "a" * (length - 1) + "/" + "b" * 120
        stage(io.BytesIO(tar_bytes([Member(name, data=b"x")])), tmp_path / f"t{length}")
        assert (tmp_path / f"t{length}" / name).read_bytes() == b"x"


@pytest.mark.parametrize("at", [0, 1, 4096, 65535, 65536, 70000, 196608, 262143, 299999])
def test_holes_that_begin_and_end_anywhere(tmp_path, at):
    """Data that starts within a grain, right at a page, at the end: whole, and in finite time."""
    with open(tmp_path / "f", "wb") as out:
        os.pwrite(out.fileno(), b"data", at)
        out.truncate(max(300_000, at + 4))
    with open(tmp_path / "f", "rb") as source:
        size = os.fstat(source.fileno()).st_size
        regions = data_regions(source.fileno(), size)
    whole = bytearray(size)
    content = (tmp_path / "f").read_bytes()
    for offset, length in regions or []:
        assert offset % HOLE == 0
        whole[offset : offset + length] = content[offset : offset + length]
    assert whole == content and sum(length for _, length in regions or []) <= 2 * HOLE


def test_an_acl_that_names_users_is_left_out_with_a_warning(tmp_path):
    """GNU tar writes names, which mean nothing here; the rest of the archive is not lost to it."""
    pax = (("SCHILY.acl.access", "user::rw-,user:jenny:r--,group::r--,mask::r--,other::---"),)
    report = stage(io.BytesIO(tar_bytes([Member("f", data=b"x", pax=pax)])), tmp_path / "tree")
    (warning,) = report.warnings
    assert warning.startswith("f: ") and "jenny" in warning
    assert (tmp_path / "tree/f").read_bytes() == b"x"


def test_pax_numbers_may_have_zeros_in_front(tmp_path):
    pax = (("size", "0" * 30 + "4"), ("uid", "0" * 25 + "7"))
    stage(io.BytesIO(tar_bytes([Member("f", data=b"four", pax=pax)])), tmp_path / "tree")
    (entry,) = [entry for entry in list_tree(tmp_path / "tree") if entry.path]
    assert (entry.size, entry.uid) == (4, 7)


def test_an_xz_dictionary_beyond_bounds_is_refused(tmp_path, monkeypatch):
    from guestctl.archive import compressed
    from guestctl.translate import stage

    packed = lzma.compress(tar_bytes([Member("a", data=b"a")]), preset=6)
    (tmp_path / "s.tar.xz").write_bytes(packed)
    stage(tmp_path / "s.tar.xz", tmp_path / "one")
    monkeypatch.setattr(compressed, "_XZ_MEMORY", 1 << 20)
    with pytest.raises(ArchiveError, match="dictionary takes more than 1 MiB") as caught:
        stage(tmp_path / "s.tar.xz", tmp_path / "two")
    assert "xz -dc" in caught.value.hint
