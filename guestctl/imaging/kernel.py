"""The kernel: Debian's source package, allnoconfig and a list of symbols."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

from guestctl.errors import ImageError
from guestctl.imaging.workshop import Step
from guestctl.recipe import Kernel

__all__ = ["build_kernel", "refused_symbols", "uimage"]

VERSION = 1  # counts the changes of this module that change what it makes

# Big folders that no guest needs; their Kconfig files and Makefiles are read all the same.
_SKIPPED = (
    "Documentation", "drivers/gpu", "drivers/infiniband", "drivers/media", "drivers/staging",
    "drivers/net/ethernet", "drivers/net/wireless", "sound", "tools/testing", "tools/perf",
)  # fmt: skip
_SOURCES = ("*.c", "*.h", "*.rst", "*.S", "*.txt", "*.yaml", "*.json", "*.svg", "*.sh", "*.py")


def build_kernel(step: Step, kernel: Kernel, symbols: str, cross: str, package: Path) -> None:
    """Makes `kernel` and, where the recipe has one, `dtb`.

    Raises ImageError that names the symbols of `symbols` that the kernel's configuration refused.
    """
    source = _unpack(step, package)
    tree = step.scratch / "build"
    tree.mkdir()
    (tree / "symbols").write_text(symbols)
    # Time, user, host and place are fixed, so that the same inputs give the same kernel.
    make: list[str | Path] = [
        "make", "-C", source, f"O={tree}", f"ARCH={kernel.arch}", f"CROSS_COMPILE={cross}",
        "KBUILD_BUILD_USER=guestctl", "KBUILD_BUILD_HOST=guestctl", "KBUILD_BUILD_VERSION=1",
        "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970", f"-j{step.workshop.jobs}",
    ]  # fmt: skip
    step.run([*make, f"KCONFIG_ALLCONFIG={tree / 'symbols'}", "allnoconfig"], deadline=600)
    refused = refused_symbols(symbols, (tree / ".config").read_text())
    if refused:
        raise ImageError(
            f"{kernel.config}: the kernel's configuration did not take {', '.join(refused)}",
            hint="a symbol is misspelt, or another that it depends on is missing from the list",
        )
    step.run([*make, *kernel.make])
    image = (tree / kernel.output).read_bytes()
    (step.out / "kernel").write_bytes(uimage(image, kernel.load) if kernel.load else image)
    if kernel.dtb:
        (tree / kernel.dtb).replace(step.out / "dtb")
    (tree / ".config").replace(step.out / "config")


def uimage(data: bytes, load: int) -> bytes:
    """Wraps a raw ARM kernel as U-Boot's legacy image, which QEMU loads to `load` and enters.

    Format: 64 bytes, big-endian, of U-Boot's image.h; operating system 5 is Linux, architecture 2
    ARM, type 2 a kernel, compression 0 none.
    """

    def header(checksum: int) -> bytes:
        numbers = (0x27051956, checksum, 0, len(data), load, load, zlib.crc32(data))
        return struct.pack(">7I4B32s", *numbers, 5, 2, 2, 0, b"guestctl")

    return header(zlib.crc32(header(0))) + data


def refused_symbols(symbols: str, config: str) -> list[str]:
    """The lines of the list that the configuration does not have as they were asked for."""
    asked = re.findall(r"^(?:CONFIG_\w+=.*|# CONFIG_\w+ is not set)$", symbols, re.MULTILINE)
    got = set(config.splitlines())
    off = re.compile(r"# (CONFIG_\w+) is not set")
    missing = []
    for line in asked:
        name = off.fullmatch(line)
        if line not in got and not (name and f"{name[1]}=" not in config):
            missing.append(line)
    return missing


def _unpack(step: Step, package: Path) -> Path:
    """Unpacks the source, without most of what is never compiled."""
    holder = step.scratch / "package"
    holder.mkdir()
    step.run(["dpkg-deb", "--extract", package, holder], deadline=600)
    tarball = next(holder.glob("usr/src/linux-source-*.tar.xz"), None)
    if tarball is None:
        raise ImageError(f"{step.name}: the package holds no usr/src/linux-source-*.tar.xz")
    skipped = [f"--exclude=*/{folder}/{name}" for folder in _SKIPPED for name in _SOURCES]
    command = ["tar", "--extract", "--use-compress-program=xz -T0", "--wildcards"]
    step.run([*command, *skipped, "--file", tarball, "-C", step.scratch], deadline=1200)
    tarball.unlink()
    return next(step.scratch.glob("linux-source-*"))
