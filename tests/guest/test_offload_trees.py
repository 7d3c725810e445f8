"""Trees as real packages have them: each is built wholly on the host, and right."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from guestctl import Guest, Pool, image, stage
from guestctl.offload import Entry
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock

from .conftest import ARCH
from .shells import reasons, sh

SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
LOCK = Path(__file__).with_name("ccache.lock")
PACKAGE = r"""
set -e
mkdir -p pkg/src pkg/include; cd pkg
echo '#define A 40' >include/a.h; echo '#include "a.h"' >include/b.h
echo '#include "b.h"
int a(void) { return A; }' >src/a.c
echo '#include "a.h"
int a(void); int main(void) { return a() + 2 != 42 || A != 40; }' >src/m.c
printf 'p: a.o m.o\n\t$(CC) -o $@ a.o m.o\n%%.o: $(S)src/%%.c\n' >Makefile
printf '\t$(CC) -I$(S)include $(CFLAGS) -MMD -MP -MF $*.d -c $< -o $@\n' >>Makefile
echo '-include a.d m.d' >>Makefile
"""
# Each a script after PACKAGE, in a folder of its own.
TREES = {
    "plain": "make && ./p",
    "symlinked-headers": """
        mv include/a.h real.h; ln -s ../real.h include/a.h; ln -s b.h include/c.h
        sed -i s/b.h/c.h/ src/a.c; make && ./p""",
    "symlinked-folders": """
        mkdir deep; mv include deep/inc; ln -s deep/inc middle; ln -s middle include
        mv src real; ln -s real src; make && ./p
        rm middle; cp -r deep/inc new; echo '#define A 7' >new/a.h; ln -s new middle
        sed -i 's/40/7/; s/42/9/' src/m.c; make -B && ./p""",
    "generated-headers": """
        printf 'a.o m.o: include/a.h\\ninclude/a.h: value\\n' >>Makefile
        printf '\\techo "#define A $$(cat value)" >$@\\n' >>Makefile
        rm include/a.h; echo 40 >value; make && ./p
        echo 6 >value; touch -d '+2 seconds' value
        sed -i 's/40/6/; s/42/8/' src/m.c; make && ./p""",
    "out-of-tree": "mkdir ../out; cd ../out; make -f ../pkg/Makefile S=../pkg/ && ./p",
    "out-of-tree-by-its-path": """
        mkdir ../out; cd ../out; make -f "$OLDPWD/Makefile" S="$OLDPWD/"; ./p""",
    "spaces": """
        cd ..; mv pkg 'a  b'; cd 'a  b'; mv include 'in clude'
        for n in a m; do gcc "-Iin clude" -c "src/$n.c" -o "o $n.o"; done
        gcc o\\ *.o -o 'p p'; './p p'""",
    "names-of-bytes": """
        cd ..; name=$(printf 'n\\377\\001'); mv pkg "$name"; cd "$name"
        mv src/a.c src/$'\\376.c'; gcc -Iinclude -c src/$'\\376.c' -o $'\\375.o'
        gcc -Iinclude src/m.c $'\\375.o' -o p; ./p""",
    "read-only": """
        mkdir ../out; chmod -R a-w .; chmod 777 ../out; cd ../out
        setpriv --reuid 1000 --regid 1000 --clear-groups make -f ../pkg/Makefile S=../pkg/; ./p
        test "$(stat -c %u p)" = 1000""",
    "mounted-read-only": """
        mkdir ../ro ../out; mount --bind . ../ro; mount -o remount,ro,bind ../ro
        cd ../out; make -f ../ro/Makefile S=../ro/ && ./p; umount ../ro""",
    "parallel": """
        for n in $(seq 30); do echo "int f$n(void) { return $n; }" >src/f$n.c; done
        objects=$(for n in $(seq 30); do echo f$n.o; done | tr '\\n' ' ')
        echo "all: $objects p" >>Makefile; make -j12 all && ./p && nm f30.o | grep -q f30""",
    "objects-in-an-archive": """
        make a.o m.o; ar rc liba.a a.o; ranlib liba.a; gcc m.o -L. -la -o q; ./q
        cd src; gcc -I../include -c m.c; gcc m.o ../liba.a; ./a.out""",
}  # fmt: skip


# The rest does not depend on how the share keeps its links.
ON_BOTH = ("symlinked-headers", "symlinked-folders")
CASES = [("mapped-file", tree) for tree in TREES] + [("mapped-xattr", tree) for tree in ON_BOTH]
on_one_model = pytest.mark.parametrize("offload_pool", ["mapped-file"], indirect=True)


@pytest.mark.parametrize(
    ("offload_pool", "tree"), CASES, indirect=["offload_pool"], scope="session"
)
def test_a_tree_is_built_on_the_host(
    offload_guest: Guest, calls: Callable[[], list[Entry]], tree: str
) -> None:
    sh(offload_guest, f"mkdir /work/t; cd /work/t\n{PACKAGE}\n{TREES[tree]}")
    assert reasons(calls()) == []


@on_one_model
def test_ccache_in_front(
    offload_guest: Guest, calls: Callable[[], list[Entry]], places: Places
) -> None:
    entries = parse_lock(LOCK.read_text(), str(LOCK))
    files = Archive(places.cache / "packages", suites=SUITES).fetch(entries)
    # On the share with its library: a changed image would hide everything from the host.
    for path in files.values():
        command = ["dpkg-deb", "--fsys-tarfile", path]
        tar = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        unpack = "mkdir -p /work/deb; tar -x -C /work/deb"
        offload_guest.run(["sh", "-c", unpack], stdin=tar, timeout=60).check()
    setup = """
        libraries=/work/deb/usr/lib/arm-linux-gnueabi
        printf '#!/bin/sh\\nexec /lib/ld-linux.so.3 --library-path %s %s "$@"\\n' \\
            $libraries /work/deb/usr/bin/ccache >/work/ccache
        chmod +x /work/ccache; export CCACHE_DIR=/work/cache"""
    script = """
        make CC='/work/ccache gcc' && ./p; rm *.o p; make CC='/work/ccache gcc' && ./p
        /work/ccache --print-stats | grep 'direct_cache_hit.2'"""
    sh(offload_guest, f"{setup}\nmkdir /work/t; cd /work/t\n{PACKAGE}\n{script}")
    made = calls()
    assert reasons(made) == []
    assert [entry.step for entry in made].count("compile") == 2


def sysroot(places: Places) -> bytes:
    """What a sysroot of artifacts has: a libc with its headers, and nothing else."""
    root = image.root_folder(image.load(ARCH, cache_dir=places.cache))
    library = "usr/lib/arm-linux-gnueabi"
    names = ["lib/ld-linux.so.3", "usr/include/stdio.h"]
    names += [f"{library}/{name}" for name in ("crt1.o", "Scrt1.o", "crti.o", "crtn.o", "libc.so")]
    names += [f"{library}/{name}" for name in ("libc_nonshared.a", "libgcc_s.so.1")]
    names += [f"lib/arm-linux-gnueabi/{name}" for name in ("libc.so.6", "ld-linux.so.3")]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in names:
            tar.add((root / name).resolve(), arcname=name)
        for folder in ("bits", "gnu", "sys"):
            tar.add(root / f"usr/include/arm-linux-gnueabi/{folder}",
                    arcname=f"usr/include/arm-linux-gnueabi/{folder}")  # fmt: skip
        for name in ("features.h", "features-time64.h", "stdc-predef.h"):
            tar.add(root / "usr/include" / name, arcname=f"usr/include/{name}")
    return made.getvalue()


@on_one_model
def test_a_sysroot_of_artifacts(
    offload_pool: Pool, armv5l_image: image.Image, places: Places, tmp_path: Path
) -> None:
    (tmp_path / "sys.tar").write_bytes(sysroot(places))
    (tmp_path / "only.h").write_text("#define ONLY 42\n")
    with offload_pool.lease(timeout=60) as guest:
        assert guest.offload is not None
        with guest.mounted():
            guest.run(["sh", "-c", "rm -rf /work/*"], timeout=60).check()
        stage(tmp_path / "sys.tar", guest.work, into="sys")
        script = """set -e
            echo '#define ONLY 42' >/usr/include/only.h
            printf '#include <stdio.h>\\n#include <only.h>\\n' >m.c
            echo 'int main(void) { printf("%d\\\\n", ONLY); return 0; }' >>m.c
            gcc -O2 -Wall m.c -o m; ./m; test ! -e /usr/include/stdlib.h"""
        with guest.mounted():
            result = guest.run(["sh", "-c", script], root="/work/sys", timeout=120, max_local=0.0)
        assert (result.status, result.stdout) == (0, b"42\n"), result


def test_in_a_root_of_its_own_with_nothing_but_tools(
    offload_guest: Guest, calls: Callable[[], list[Entry]]
) -> None:
    program = 'void _start(void) { for (;;) __asm__("mov r7, #1; mov r0, #42; swi 0"); }'
    script = f"""
        set -e
        mkdir -p inc; echo '#define X 1' >real.h; ln -s ../real.h inc/x.h
        printf '#include "x.h"\\n%s\\n' '{program}' >x.c
        printf 'x: x.o\\n\\tld -o x x.o\\nx.o: x.c\\n' >Makefile
        printf '\\tgcc -Iinc -g -ffreestanding -c x.c\\n' >>Makefile
        make; ./x || test $? = 42
        ar rc l.a x.o; gcc --version | head -1
    """
    offload_guest.run(["mkdir", "-p", "/work/root/b"], timeout=30).check()
    result = offload_guest.run(["sh", "-c", script], root="/work/root", cwd="/b", timeout=120)
    assert result.status == 0, result
    made = calls()
    assert reasons(made) == []
    assert [entry.tool for entry in made] == ["gcc", "ld", "ar", "gcc"]
