"""Objects that the guest's own compiler has made of real packages, by their SHA-256.

objects.json has a sample of those that `make proof PROOF=offload` made anew in a guest, which takes
too long for the tests: these only let the host make them, and compare. Of another compiler, or with
another C library, they say nothing: then two of each package are made in the guest after all.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from guestctl import image
from guestctl.places import Places

__all__ = ["SAMPLES", "Made", "hashes", "known", "sample", "script", "versions", "write"]

SAMPLES = 30  # of a package, at most
_FILE = Path(__file__).with_name("objects.json")
_ARCH = "armv5l"
_AT_ONCE = 4
# The Debian packages whose content shows in an object.
_PARTS = re.compile(r"cpp-\d+|gcc-\d+|g\+\+-\d+|binutils.*|lib(?:gcc|stdc\+\+)-\d+-dev|libc6-dev"
                    r"|linux-libc-dev")  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A compilation of a package's build, and the object that the guest's own compiler made."""

    cwd: str
    command: str
    object: str
    sha256: str = ""


def versions(places: Places) -> dict[str, str]:
    """What objects of the image's compiler depend on."""
    packages = image.load(_ARCH, cache_dir=places.cache).facts()["packages"]
    return {
        entry["name"]: entry["version"]
        for entry in packages
        if entry["group"] == "root" and _PARTS.fullmatch(entry["name"])
    }


def sample(every: list[Made]) -> list[Made]:
    """SAMPLES of all, from everywhere in them."""
    count = min(SAMPLES, len(every))
    return [every[index * len(every) // count] for index in range(count)]


def write(packages: dict[str, list[Made]], places: Places) -> None:
    """Keeps a sample of each package."""
    rows = {name: [asdict(made) for made in sample(every)] for name, every in packages.items()}
    table = {"versions": versions(places), "packages": rows}
    _FILE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def known(name: str, places: Places) -> list[Made]:
    """The sample of a package; without SHA-256 where the compiler is another one, and fewer."""
    table = json.loads(_FILE.read_text())
    rows = [Made(**row) for row in table["packages"][name]]
    if table["versions"] == versions(places):
        return rows
    return [Made(row.cwd, row.command, row.object) for row in rows[:2]]


def script(rows: list[Made]) -> str:
    """Makes each, some at once, and prints what `hashes` reads."""
    lines = ["set -e"]
    for number, row in enumerate(rows, 1):
        there = f"mkdir -p {shlex.quote(row.cwd)} {shlex.quote(str(Path(row.object).parent))}"
        lines.append(f'{there}; (cd {shlex.quote(row.cwd)}; {row.command}) & pids="$pids $!"')
        if number % _AT_ONCE == 0 or number == len(rows):
            lines.append('for pid in $pids; do wait $pid; done; pids=""')
    lines.append("sha256sum " + " ".join(shlex.quote(row.object) for row in rows))
    return "\n".join(lines)


def hashes(output: bytes) -> list[str]:
    """What `script` has printed, in the order of the objects."""
    return re.findall(r"^([0-9a-f]{64})  ", output.decode(errors="replace"), re.MULTILINE)
