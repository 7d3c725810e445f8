"""Shares as QEMU leaves them, and toolchains, for the tests of views."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from guestctl import vmeta
from guestctl.view import Call, Mount

HERE = Path(__file__).parent
INTERPRETER = b"/lib64/ld-linux-x86-64.so.2"
CROSS = "arm-linux-gnueabi"


class GuestShare:
    """Changes a share by the system calls that QEMU's 9p makes for a guest's."""

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.model = model
        path.mkdir(parents=True, exist_ok=True)

    def _at(self, name: str) -> tuple[Path, Path]:
        path = self.path / name
        return path, path.parent / os.fsdecode(vmeta.META_DIR) / path.name

    def _set(self, name: str, mode: int, rdev: int | None = None) -> None:
        path, meta = self._at(name)
        if self.model == vmeta.MAPPED_FILE:
            meta.parent.mkdir(mode=0o700, exist_ok=True)
            meta.write_bytes(vmeta.encode_text(0, 0, mode, rdev))
            return
        for key, value in vmeta.encode_xattrs(0, 0, mode, rdev):
            os.setxattr(path, key, value)

    def _make(self, name: str, data: bytes, mode: int, rdev: int | None = None) -> None:
        fd = os.open(self.path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(fd, data)
        os.close(fd)
        self._set(name, mode, rdev)

    def file(self, name: str, data: str | bytes, mode: int = 0o644) -> None:
        """A new file, or an old one written in place."""
        content = data.encode() if isinstance(data, str) else data
        if (self.path / name).exists():
            (self.path / name).write_bytes(content)
        else:
            self._make(name, content, 0o100000 | mode)

    def link(self, name: str, target: str | bytes) -> None:
        self._make(name, os.fsencode(target), 0o120777)

    def device(self, name: str, mode: int = 0o020666, rdev: int = 0x103) -> None:
        self._make(name, b"", mode, rdev)

    def folder(self, name: str) -> None:
        (self.path / name).mkdir(mode=0o700)
        self._set(name, 0o040755)

    def hard(self, old: str, new: str) -> None:
        """One more name of a file."""
        for one, other in zip(self._at(old), self._at(new), strict=True):
            if self.model == vmeta.MAPPED_FILE or one == self.path / old:
                os.link(one, other)

    def remove(self, name: str) -> None:
        path, meta = self._at(name)
        if self.model == vmeta.MAPPED_FILE:
            if path.is_dir():
                shutil.rmtree(path / os.fsdecode(vmeta.META_DIR), ignore_errors=True)
            meta.unlink(missing_ok=True)
        path.rmdir() if path.is_dir() else path.unlink()

    def rename(self, old: str, new: str) -> None:
        path, meta = self._at(old)
        target, target_meta = self._at(new)
        if self.model == vmeta.MAPPED_FILE:
            target_meta.parent.mkdir(mode=0o700, exist_ok=True)
            meta.rename(target_meta)
        path.rename(target)


def probe_toolchain(folder: Path) -> Path:
    """A toolchain whose only tool is the probe."""
    folder.mkdir(parents=True)
    source = HERE / "viewprobe.c"
    command = ["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", folder / "probe", source]
    subprocess.run(command, check=True, timeout=120, env={"PATH": "/usr/bin:/bin"})
    return folder


def cross_toolchain(folder: Path) -> Path:
    """The system's cross compiler, moved so that it finds itself at /.tc."""
    inside = f"usr/lib/gcc-cross/{CROSS}/12"
    unused = shutil.ignore_patterns("cc1plus", "lto1", "lto-dump", "plugin", "*san*")
    shutil.copytree(Path("/", inside), folder / inside, ignore=unused)
    tools = folder / "usr" / CROSS / "bin"
    tools.mkdir(parents=True)
    (folder / "usr/bin").mkdir()
    shutil.copy2(f"/usr/bin/{CROSS}-gcc", folder / "usr/bin/gcc")
    for name in ("as", "ld", "ar", "strip"):
        shutil.copy2(f"/usr/bin/{CROSS}-{name}", tools / name)
        shutil.copy2(f"/usr/bin/{CROSS}-{name}", folder / "usr/bin" / name)
    _relocate(folder)
    return folder


def _relocate(folder: Path) -> None:
    libraries: set[str] = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if data.startswith(b"\x7fELF") and INTERPRETER + b"\0" in data:
            listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True)
            libraries |= set(re.findall(r"=> (/\S+)", listed.stdout))
            new = b"/.tc/ld.so".ljust(len(INTERPRETER), b"\0")
            path.chmod(0o755)
            path.write_bytes(data.replace(INTERPRETER, new, 1))
    (folder / "lib").mkdir()
    for library in libraries:
        shutil.copy2(library, folder / "lib")
    loader = Path(os.fsdecode(INTERPRETER)).read_bytes()
    for name in (b"/etc/ld.so.preload", b"/etc/ld.so.cache"):
        loader = loader.replace(name + b"\0", b"/.tc/-".ljust(len(name), b"-") + b"\0")
    (folder / "ld.so").write_bytes(loader)
    (folder / "ld.so").chmod(0o755)


def probe(*argv: str | bytes, mounts: tuple[Mount, ...], **more: object) -> Call:
    """A call of the probe."""
    words = tuple(os.fsencode(word) for word in argv)
    fields: dict[str, object] = {"environment": {}, "cwd": b"/", **more}
    return Call(b"/.tc/probe", (b"probe", *words), mounts=mounts, **fields)  # type: ignore[arg-type]


def compiler(*argv: str | bytes, cwd: bytes, mounts: tuple[Mount, ...], **more: object) -> Call:
    """A call of the cross compiler."""
    words = tuple(os.fsencode(word) for word in argv)
    environment = {b"LD_LIBRARY_PATH": b"/.tc/lib", b"PATH": b"/.tc/usr/bin", b"LC_ALL": b"C"}
    environment.update(more.pop("environment", {}))  # type: ignore[call-overload]
    program = b"/.tc/usr/bin/gcc"
    fields: dict[str, object] = {"environment": environment, "cwd": cwd, **more}
    return Call(program, (b"gcc", *words), mounts=mounts, **fields)  # type: ignore[arg-type]
