"""`python -m tests.proof [NAME ...]`: runs the proofs, all by default, from where they were.

With `--seconds N` each begins no step after so long, and goes on there the next time; the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from tests.proof import Enough, NotHere, Proof


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="N")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    names = options.names or sorted(
        path.stem.removeprefix("proof_") for path in Path(__file__).parent.glob("proof_*.py")
    )
    status = 0
    for name in names:
        module = importlib.import_module(f"tests.proof.proof_{name}")
        proof = Proof(name, module.TITLE, options.seconds)
        try:
            module.prove(proof)
        except NotHere as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        except Enough as step:
            print(f"{name}: to be gone on with, from {step}", flush=True)
            status = 1
            continue
        print(f"{name}: written to {proof.write()}", flush=True)
        proof.forget()
    return status


if __name__ == "__main__":
    sys.exit(main())
