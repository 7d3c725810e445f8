"""`python -m tests.proof [NAME ...]`: runs the proofs, all by default, from where they were."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.proof import NotHere, Proof


def main() -> None:
    names = sys.argv[1:] or sorted(
        path.stem.removeprefix("proof_") for path in Path(__file__).parent.glob("proof_*.py")
    )
    for name in names:
        module = importlib.import_module(f"tests.proof.proof_{name}")
        proof = Proof(name, module.TITLE)
        try:
            module.prove(proof)
        except NotHere as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        print(f"{name}: written to {proof.write()}", flush=True)
        proof.forget()


if __name__ == "__main__":
    main()
