"""A saved guest's memory: sparse in the cache, sealed for clones."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from guestctl.memory import fill, is_sealed, unfilled, write_sparse

PAGE = 4096


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """64 MiB with data at both ends, and a page of zeros written on purpose."""
    memory = os.memfd_create("test")
    os.ftruncate(memory, 64 << 20)
    os.pwrite(memory, b"begin", 0)
    os.pwrite(memory, bytes(PAGE), 20 << 20)
    os.pwrite(memory, b"end", (64 << 20) - 3)
    write_sparse(memory, tmp_path / "ram")
    os.close(memory)
    return tmp_path / "ram"


def test_only_what_is_not_zero_is_written(saved: Path) -> None:
    facts = saved.stat()
    assert facts.st_size == 64 << 20
    assert facts.st_blocks * 512 <= 4 * PAGE
    assert facts.st_mode & 0o777 == 0o400


def test_a_copy_is_the_same_and_stays_so(saved: Path) -> None:
    with open(saved, "rb") as file:
        memory = unfilled(file.fileno())
        # As QEMU has it from its start on.
        early = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
        mapped = mmap.mmap(early, 64 << 20, flags=mmap.MAP_PRIVATE)
        assert not is_sealed(memory)
        fill(memory, file.fileno())
        assert not is_sealed(file.fileno())
    try:
        assert is_sealed(memory)
        with pytest.raises(PermissionError):
            os.pwrite(early, b"x", 0)
        assert mapped[:5] == b"begin"
        mapped[:5] = b"other"
        mapped.close()
        os.close(early)
        whole = os.pread(memory, 64 << 20, 0)
        assert whole == saved.read_bytes()
        again = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
        for change in (
            lambda: os.pwrite(again, b"x", 0),
            lambda: os.ftruncate(again, 0),
            lambda: os.ftruncate(again, 65 << 20),
        ):
            with pytest.raises(PermissionError):
                change()
        os.close(again)
    finally:
        os.close(memory)
