"""A build in a guest that a compile host has a share in, and then no more."""

from __future__ import annotations

from pathlib import Path

from guestctl import Pool, image
from guestctl.offload import Entry, HostBook, read_ledger
from guestctl.places import Places
from guestctl.toolchain import install
from tests.farhost import far_host

from .conftest import ARCH
from .shells import settle, sh

FILES = 24
SOURCES = f"""
    mkdir -p /work/t; cd /work/t
    for n in $(seq {FILES}); do
        printf '#include <stdio.h>\\nint f%s(void) {{ return printf("%s"); }}\\n' $n $n >f$n.c
    done
    objects=$(for n in $(seq {FILES}); do echo f$n.o; done | tr '\\n' ' ')
    printf 'all: %s\\n%%.o: %%.c\\n\\tgcc -O2 -MD -MF $*.d -c $< -o $@\\n' "$objects" >Makefile
"""
MAKE = "cd /work/t; rm -f *.o; make -s -j6; sha256sum *.o *.d"


def test_a_compile_host_has_its_share_of_a_build(
    armv5l_image: image.Image, places: Places, tmp_path: Path
) -> None:
    install(ARCH, cache_dir=places.cache)
    book = HostBook(places.config, places.runtime)
    with (
        far_host(tmp_path / "far", limit=4) as far,
        Pool(ARCH, 1, places=places) as pool,
        pool.lease(timeout=60) as guest,
        guest.mounted(),
    ):
        offload = guest.offload
        assert offload is not None

        def make() -> tuple[str, list[Entry]]:
            before = len(read_ledger(offload.ledger.path)) if offload.ledger.path.exists() else 0
            said = sh(guest, MAKE)
            settle(guest)
            return said, read_ledger(offload.ledger.path)[before:]

        sh(guest, SOURCES)
        alone, entries = make()
        assert not any(entry.compile_host for entry in entries)
        book.add(far.host)
        try:
            # It is looked at while the first of these run here.
            for _ in range(20):
                shared, entries = make()
                assert shared == alone
                if any(entry.compile_host for entry in entries):
                    break
            assert {entry.compile_host for entry in entries} <= {"", far.host.name}
            assert far.host.name in {entry.compile_host for entry in entries}
            assert {entry.where for entry in entries} == {"offload"}
            book.drain(far.host)
            drained, entries = make()
            assert drained == alone
            assert not any(entry.compile_host for entry in entries)
        finally:
            book.remove(far.host)
