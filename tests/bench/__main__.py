"""`python -m tests.bench [NAME ...]`: runs the benchmarks, all of them by default."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    names = sys.argv[1:] or sorted(
        path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")
    )
    for name in names:
        print(f"== {name}", flush=True)
        # Some take options of their own, which are given by running their module.
        sys.argv = [name]
        importlib.import_module(f"tests.bench.bench_{name}").main()


if __name__ == "__main__":
    main()
