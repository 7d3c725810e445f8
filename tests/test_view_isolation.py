"""What a malicious guest tries through a tool in a view: its arguments, its files, its links."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl.places import Places
from guestctl.view import Call, Mount, Outcome, Tree, View
from tests.viewtools import CROSS, GuestShare, compiler, cross_toolchain, probe, probe_toolchain

MOUNTS = (Mount("root", b"", b"/"), Mount("work", b"", b"/work"))
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
SECRET = "only-the-host-has-this"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("isolation")
    (made / "root/etc").mkdir(parents=True)
    (made / "root/tmp").mkdir()
    (made / "secret").write_text(f"{SECRET}\n")
    (made / "secret.h").write_text(f'char *secret = "{SECRET}";\n')
    cross_toolchain(made / "tc")
    for command in (
        (f"{CROSS}-gcc", "-c", "-x", "c", "-o", made / "secret.o", made / "secret.h"),
        (f"{CROSS}-ar", "rcT", made / "thin.a", made / "secret.o"),
    ):
        subprocess.run(command, check=True, env=ENVIRONMENT, timeout=60)
    assert os.fsencode(made / "secret.o") in (made / "thin.a").read_bytes()
    return made


both_models = pytest.mark.parametrize("share", ["mapped-file", "mapped-xattr"], indirect=True)


@pytest.fixture
def share(request: pytest.FixtureRequest, tmp_path: Path) -> GuestShare:
    made = GuestShare(tmp_path / "share", getattr(request, "param", "mapped-file"))
    made.file("a.c", "int a;\n")
    return made


@pytest.fixture
def view(share: GuestShare, folder: Path, places: Places) -> Iterator[View]:
    trees = {"root": Tree(folder / "root"), "work": Tree(share.path, share.model)}
    with View(trees, folder / "tc", cache_dir=places.cache) as made:
        yield made


def gcc(view: View, *argv: str, **more: object) -> Outcome:
    return view.call(compiler(*argv, cwd=b"/work", mounts=MOUNTS, **more))


def everything(outcome: Outcome) -> bytes:
    return b"".join(
        (outcome.stdout, outcome.stderr, *(written.data for written in outcome.written))
    )


def fails_without_the_secret(outcome: Outcome) -> None:
    assert outcome.status != 0
    assert SECRET.encode() not in everything(outcome)


@both_models
def test_the_compiler_works_here_at_all(view: View, share: GuestShare) -> None:
    """Else all that follows would fail for the wrong reason."""
    share.file("b.h", "#define B 1\n")
    share.link("link.h", "b.h")
    share.file("b.c", '#include "link.h"\nint b = B;\n__asm__(".incbin \\"b.h\\"");\n')
    outcome = gcc(view, "-c", "b.c")
    assert outcome.status == 0, outcome.stderr
    (written,) = outcome.written
    assert written.data.startswith(b"\x7fELF\x01\x01")
    assert b"#define B 1" in written.data
    linked = gcc(view, "-nostdlib", "a.c")
    assert (linked.status, [entry.path for entry in linked.written]) == (0, [b"/work/a.out"])


# Reading the host's files


HOST_FILES = ("/etc/passwd", "/etc/shadow", "/proc/self/maps", "/proc/1/environ", "{secret}",
              "../../../../../../..{secret}", "../../../../../../../../../etc/passwd",
              "/dev/stdin", "/dev/fd/3", "/dev/../etc/passwd")  # fmt: skip


@pytest.mark.parametrize("path", HOST_FILES)
def test_paths_of_the_host_lead_nowhere(
    view: View, share: GuestShare, folder: Path, path: str
) -> None:
    path = path.format(secret=folder / "secret.h")
    if os.path.basename(path) == "shadow":
        assert not (folder / "root/etc/shadow").exists()
    share.file("include.c", f'#include "{path}"\n')
    share.file("incbin.s", f'.incbin "{path}"\n')
    share.file("include.s", f'.include "{path}"\n')
    share.file("input.ld", f"INPUT({path})\n")
    share.file("script.ld", f'INCLUDE "{path}"\n')
    for argv in (
        ("-E", "include.c"),
        ("-c", "include.c"),
        ("-c", "incbin.s"),
        ("-c", "include.s"),
        ("-E", "-x", "c", path),
        ("-E", "-include", path, "a.c"),
        ("-E", "-imacros", path, "a.c"),
        ("-c", f"@{path}", "-include", "none.h", "a.c"),
        ("-nostdlib", "input.ld"),
        ("-nostdlib", "-Wl,-T,script.ld", "a.c"),
        ("-nostdlib", f"-Wl,--just-symbols={path}", "-Wl,--version-script=a.c", "a.c"),
        ("-c", f"-specs={path}", "-include", "none.h", "a.c"),
    ):
        fails_without_the_secret(gcc(view, *argv))


@both_models
def test_links_of_the_share_lead_into_the_guest_only(
    view: View, share: GuestShare, folder: Path
) -> None:
    targets = ("/etc/passwd", "/proc/self/environ", str(folder / "secret.h"), "../../../etc/passwd")
    for number, target in enumerate(targets):
        share.link(f"link{number}.h", target)
        fails_without_the_secret(gcc(view, "-E", f"link{number}.h"))
    share.link("up", "../../../../../../..")
    fails_without_the_secret(gcc(view, "-E", f"up{folder}/secret.h"))
    (share.path / "planted.h").symlink_to(folder / "secret.h")
    fails_without_the_secret(gcc(view, "-E", "planted.h"))


def test_search_paths_and_archives_of_the_host(view: View, share: GuestShare, folder: Path) -> None:
    share.file("s.c", "#include <secret.h>\n")
    fails_without_the_secret(gcc(view, "-E", f"-I{folder}", "s.c"))
    for name in (b"CPATH", b"C_INCLUDE_PATH", b"GCC_EXEC_PREFIX", b"COMPILER_PATH"):
        outcome = gcc(view, "-E", "s.c", environment={name: os.fsencode(folder)})
        fails_without_the_secret(outcome)
    share.file("thin.a", (folder / "thin.a").read_bytes())
    outcome = gcc(view, "-nostdlib", "-Wl,-u,secret", "a.c", "thin.a")
    fails_without_the_secret(outcome)
    assert b"secret.o" in outcome.stderr, outcome


# Running code on the host


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Programs for this machine that say so when they run, as a guest would smuggle them in."""
    where = tmp_path_factory.mktemp("native")
    code = 'extern int puts(const char *); int plugin_is_GPL_compatible; %s { puts("RAN"); %s }'
    (where / "main.c").write_text(code % ("int main(void)", "return 0;"))
    (where / "plugin.c").write_text(
        code % ("__attribute__((constructor)) static void run(void)", "")
        + "int plugin_init(void *a, void *b) { (void)a; (void)b; return 0; }"
    )
    made = {}
    for name, flags in (("main", ["-static"]), ("plugin", ["-shared", "-fPIC"])):
        command = ["gcc", *flags, "-o", where / name, where / f"{name}.c"]
        subprocess.run(command, check=True, env=ENVIRONMENT, timeout=60)
        made[name] = (where / name).read_bytes()
    return made


@both_models
def test_nothing_of_the_guest_s_runs_on_the_host(
    view: View, share: GuestShare, native: dict[str, bytes]
) -> None:
    share.file("plugin.so", native["plugin"], 0o755)
    for name in ("cc1", "as", "ld", "collect2", "program"):
        share.file(name, native["main"], 0o755)
        (share.path / name).chmod(0o755)
    (share.path / "plugin.so").chmod(0o755)
    share.file("specs", "*cc1:\n+ -B/work/\n\n*asm:\n %:sanitize(address)\n")
    share.file("args", "-wrapper /work/program")
    here = {b"COMPILER_PATH": b"/work", b"GCC_EXEC_PREFIX": b"/work/", b"PATH": b"/work"}
    for argv, environment in (
        (("-c", "-fplugin=./plugin.so", "a.c"), {}),
        (("-c", "-fplugin=/work/plugin.so", "a.c"), {}),
        (("-c", "-B./", "a.c"), {}),
        (("-c", "-B/work/", "a.c"), {}),
        (("-c", "-wrapper", "/work/program", "a.c"), {}),
        (("-c", "@args", "a.c"), {}),
        (("-c", "-specs=specs", "a.c"), {}),
        (("-nostdlib", "-fuse-ld=/work/program", "a.c"), {}),
        (("-nostdlib", "-Wl,-plugin,/work/plugin.so", "a.c"), {}),
        (("-c", "a.c"), here),
        (("-c", "a.c"), {b"LD_PRELOAD": b"/work/plugin.so"}),
        (("-c", "a.c"), {b"LD_LIBRARY_PATH": b"/work:/.tc/lib"}),
    ):
        outcome = gcc(view, *argv, environment=environment)
        assert b"RAN" not in everything(outcome), argv
    direct = Call(b"/work/program", (b"program",), {}, b"/", MOUNTS)
    with pytest.raises(Exception, match="execute /work/program: Permission denied"):
        view.call(direct)


def test_a_preload_file_of_the_guest_is_not_read(
    view: View, folder: Path, native: dict[str, bytes], share: GuestShare
) -> None:
    share.file("plugin.so", native["plugin"], 0o755)
    (folder / "root/etc/ld.so.preload").write_text("/work/plugin.so\n")
    try:
        outcome = gcc(view, "-c", "a.c")
        assert (outcome.status, outcome.stderr) == (0, b"")
    finally:
        (folder / "root/etc/ld.so.preload").unlink()


# Writing outside


def test_outputs_outside_come_back_and_go_nowhere(
    view: View, share: GuestShare, folder: Path
) -> None:
    target = folder / share.model / "made.o"
    outcome = gcc(view, "-c", "a.c", "-o", str(target))
    assert outcome.status != 0
    (folder / "root" / str(target.parent)[1:]).mkdir(parents=True)
    outcome = gcc(view, "-c", "a.c", "-o", str(target))
    assert [written.path for written in outcome.written] == [os.fsencode(target)]
    assert not target.exists()
    for path in ("/.tc/usr/bin/gcc", "/.tc/new", "/dev/new", "/dev/null/x", "/proc/x"):
        assert gcc(view, "-c", "a.c", "-o", path).status != 0
    for name in (b"DEPENDENCIES_OUTPUT", b"SUNPRO_DEPENDENCIES"):
        outcome = gcc(view, "-c", "a.c", environment={name: b"/.tc/deps"})
        assert all(written.path == b"/work/a.o" for written in outcome.written)
    assert not (folder / "tc/deps").exists()


# A tool that was taken over


@pytest.fixture
def probing(tmp_path: Path, share: GuestShare, folder: Path, places: Places) -> Iterator[View]:
    toolchain = probe_toolchain(tmp_path / "probe")
    trees = {"root": Tree(folder / "root"), "work": Tree(share.path, share.model)}
    with View(trees, toolchain, cache_dir=places.cache) as made:
        yield made


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("ptrace", b"EPERM"),
        ("mount", b"EPERM"),
        ("unshare", b"EPERM"),
        ("socket", b"EPERM"),
        ("mknod /work/disk", b"EPERM"),
        ("chroot", b"EPERM"),
        ("write /.tc/probe x", b"EROFS"),
        ("unlink /dev/null", b"EROFS"),
        ("chmod /dev/null 0", b"EROFS"),
        ("exec /work/program", b"EACCES"),
        ("map /work/program", b"EPERM"),
        ("read /../../../../etc/passwd", b"ENOENT"),
        ("list /proc/self", b"ENOENT"),
        ("list /sys", b"ENOENT"),
    ],
)
def test_a_tool_has_no_powers(probing: View, share: GuestShare, words: str, error: bytes) -> None:
    share.file("program", (Path("/bin/true")).read_bytes())
    (share.path / "program").chmod(0o755)
    outcome = probing.call(probe(*words.split(), mounts=MOUNTS, cwd=b"/work"))
    assert outcome.status == 1, outcome
    assert outcome.stderr.split()[-1] == error


def test_a_tool_sees_only_processes_of_its_own_call(probing: View) -> None:
    outcome = probing.call(probe("ids", mounts=MOUNTS))
    assert outcome.stdout.split()[0] == str(os.getuid()).encode()
    assert int(outcome.stdout.split()[1]) < 10
    assert probing.call(probe("kill", "1", mounts=MOUNTS)).status == 0, "init is not affected"
    assert probing.call(probe("kill", str(os.getpid() + 100000), mounts=MOUNTS)).status == 1


def test_a_script_of_the_guest_does_not_run(probing: View, share: GuestShare) -> None:
    share.file("script", "#!/.tc/probe\n")
    (share.path / "script").chmod(0o755)
    outcome = probing.call(probe("exec", "/work/script", mounts=MOUNTS))
    assert outcome.stderr.split()[-1] == b"EACCES"
