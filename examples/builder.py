"""A builder in sixty lines: a folder of tarballs and a recipe of shell commands become artifacts.

    python examples/builder.py RECIPE OUT

RECIPE is JSON: {"arch": …, "packages": [{"name", "tarball", "needs": […], "commands": […]}, …]}.
Each package is built in a pristine guest, in a root that holds what it needs, several side by side.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from guestctl import Pool, collect, stage


def build(pool: Pool, package: dict[str, Any], out: Path) -> str:
    """One package: what it needs and its source in, its artifact out."""
    with pool.lease(timeout=3600, fresh=True) as guest:
        for need in package["needs"]:
            stage(out / f"{need}.tar", guest.work)
        stage(package["tarball"], guest.work, into="build")
        with guest.mounted(), open(out / f"{package['name']}.log", "wb") as log:
            for command in ["mkdir -p /inst /tmp", *package["commands"]]:
                guest.run(
                    ["/tools/bin/sh", "-ec", command],
                    root="/work",
                    cwd="/build",
                    env={"DESTDIR": "/inst", "MAKEFLAGS": f"-j{guest.jobs}"},
                    log=log,
                    timeout=3600,
                    idle_timeout=600,
                ).check()
        collect(guest.work, out / f"{package['name']}.tar", path="inst", mtime=0)
    return str(package["name"])


def main(recipe: Path, out: Path) -> None:
    facts = json.loads(recipe.read_text())
    waiting = {package["name"]: package for package in facts["packages"]}
    done: set[str] = set()
    running: set[Future[str]] = set()
    size = min(len(waiting), os.cpu_count() or 1)
    with Pool(facts["arch"], size) as pool, ThreadPoolExecutor(size) as workers:
        while waiting or running:
            for name in [name for name in waiting if done.issuperset(waiting[name]["needs"])]:
                running.add(workers.submit(build, pool, waiting.pop(name), out))
            if not running:
                raise SystemExit(f"these need each other: {', '.join(waiting)}")
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done.add(future.result())
                print(f"{future.result()} is built", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
