"""How the steps of an image hang together: what each is made from, and what runs side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from guestctl import resources
from guestctl.errors import ImageError
from guestctl.imaging import bytecode, hosttools, initramfs, kernel, rootfs, static, tools
from guestctl.imaging.workshop import Progress, Step, Workshop
from guestctl.packages import SOURCE, Archive, PackageGone, sha256_of
from guestctl.recipe import Locked, Recipe, StaticTool

__all__ = ["Assembly"]


class Assembly:
    """One build of one recipe. `host` are the versions of the host's packages."""

    def __init__(
        self, recipe: Recipe, workshop: Workshop, archive: Archive, host: dict[str, str]
    ) -> None:
        self._recipe = recipe
        self._workshop = workshop
        self._archive = archive
        self._host = host

    @staticmethod
    def resolve(recipe: Recipe, archive: Archive) -> tuple[Locked, ...]:
        """Returns today's packages for all that the recipe names."""
        return (
            *archive.pick([recipe.kernel.package], "all", "kernel"),
            *archive.resolve(recipe.root, recipe.debian, "root"),
            *archive.pick(recipe.static_libraries, recipe.debian, "static"),
            *archive.sources([tool.source for tool in recipe.static]),
        )

    def make(
        self, lock: Sequence[Locked], *, locked: bool
    ) -> tuple[dict[str, Path], dict[str, Any]]:
        """Returns the image's files by name, and what the manifest says of them."""
        files, replaced = self._fetch(lock, locked)
        with ThreadPoolExecutor(4, thread_name_prefix="image") as pool:
            try:
                boot = pool.submit(self._kernel, files)
                init = pool.submit(self._guest_init)
                built = self._static(files, pool)
                root = self._root(files, built)
                parts = {"root": root / "root", "kernel": boot.result() / "kernel"}
                ramfs = self._initramfs(init.result(), files)
            except BaseException:
                self._workshop.broken.set()
                raise
        parts["initramfs"] = ramfs / "initramfs"
        if self._recipe.kernel.dtb:
            parts["dtb"] = boot.result() / "dtb"
        return parts, {
            "files": {name: sha256_of(path) for name, path in sorted(parts.items())},
            "host": self._host,
            "packages": [asdict(entry) for entry in sorted(files)],
            "replaced": [asdict(entry) for entry in replaced],
            "guest-init": hosttools.guest_init_digest(),
        }

    def _fetch(
        self, lock: Sequence[Locked], locked: bool
    ) -> tuple[dict[Locked, Path], list[Locked]]:
        """Fetches the lock's files; where the archive has dropped some, today's of all groups."""
        report = self._workshop.report
        share = lambda part: report(Progress("packages", "runs", share=part))  # noqa: E731
        report(Progress("packages", "starts"))
        replaced: list[Locked] = []
        try:
            files = self._archive.fetch(lock, share)
        except PackageGone as error:
            if locked:
                error.hint = f"guestctl image lock {self._recipe.arch} takes today's versions"
                raise
            report(Progress("packages", "runs", f"{error}: taking today's versions"))
            today = self.resolve(self._recipe, self._archive)
            replaced = [entry for entry in lock if entry not in today]
            files = self._archive.fetch(today, share)
        report(Progress("packages", "done", f"{len(files)} files"))
        return files, replaced

    def _facts(self, version: int, files: dict[Locked, Path], *more: Any) -> list[Any]:
        return [version, sorted(entry.sha256 for entry in files), self._host, *more]

    def _kernel(self, files: dict[Locked, Path]) -> Path:
        recipe = self._recipe
        (package,) = _group(files, "kernel").values()
        path = resources.images() / recipe.kernel.config
        try:
            symbols = path.read_text()
        except OSError as error:
            raise ImageError(f"kernel.config: {path}: {error.strerror}") from None
        facts = self._facts(
            kernel.VERSION, _group(files, "kernel"), asdict(recipe.kernel), recipe.cross, symbols
        )

        def work(step: Step) -> None:
            kernel.build_kernel(step, recipe.kernel, symbols, recipe.cross, package)

        return self._workshop.make(f"kernel-{recipe.arch}", facts, work)

    def _static(self, files: dict[Locked, Path], pool: ThreadPoolExecutor) -> dict[str, Path]:
        recipe = self._recipe
        group = _group(files, "static")
        work = partial(static.build_libraries, packages=[group[entry] for entry in sorted(group)])
        facts = self._facts(static.VERSION, group)
        libraries = self._workshop.make(f"libraries-{recipe.arch}", facts, work)
        # configure is a single process; several of them keep the processors busy.
        order = sorted(recipe.static, key=lambda tool: tool.source != "coreutils")
        futures = [pool.submit(self._static_tool, tool, files, libraries) for tool in order]
        return {tool.source: future.result() for tool, future in zip(order, futures, strict=True)}

    def _static_tool(self, tool: StaticTool, files: dict[Locked, Path], libraries: Path) -> Path:
        recipe = self._recipe
        mine = {e: p for e, p in _group(files, SOURCE).items() if e.name == tool.source}
        facts = self._facts(
            static.VERSION, mine, libraries.name, recipe.cross, recipe.triplet, asdict(tool)
        )

        def work(step: Step) -> None:
            static.build_static(step, recipe, tool, mine, libraries, self._workshop.jobs)

        return self._workshop.make(f"{tool.source}-{recipe.arch}", facts, work)

    def _root(self, files: dict[Locked, Path], built: dict[str, Path]) -> Path:
        recipe = self._recipe
        packages = _group(files, "root")
        facts = self._facts(
            rootfs.VERSION, packages, tools.VERSION, sorted(path.name for path in built.values()),
            recipe.root, dict(recipe.links), asdict(recipe.tools), recipe.loader, recipe.triplet,
            bytecode.VERSION, recipe.python,
        )  # fmt: skip

        def work(step: Step) -> None:
            rootfs.build_root(step, recipe, packages, built)

        return self._workshop.make(f"root-{recipe.arch}", facts, work)

    def _guest_init(self) -> Path:
        recipe = self._recipe
        facts = self._facts(initramfs.VERSION, {}, hosttools.guest_init_digest(), recipe.cross)

        def work(step: Step) -> None:
            initramfs.build_guest_init(step, resources.guest_init(), recipe.cross)

        return self._workshop.make(f"guest-init-{recipe.arch}", facts, work)

    def _initramfs(self, init: Path, files: dict[Locked, Path]) -> Path:
        versions = [match[1] for e in files if (match := re.fullmatch(r"gcc-(\d+)", e.name))]
        names = initramfs.stub_names(self._recipe.triplet, versions)

        def work(step: Step) -> None:
            output = step.out / "initramfs"
            initramfs.write_initramfs(init / "guest-init", init / "stub", names, output)

        facts = self._facts(initramfs.VERSION, {}, init.name, names)
        return self._workshop.make(f"initramfs-{self._recipe.arch}", facts, work)


def _group(files: dict[Locked, Path], name: str) -> dict[Locked, Path]:
    return {entry: path for entry, path in files.items() if entry.group == name}
