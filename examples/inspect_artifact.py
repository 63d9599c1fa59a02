"""Read an artifact with the standard library alone, and say what its model is made of.

    python examples/inspect_artifact.py ARTIFACT_FOLDER
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from autodeploy.artifact import read_artifact


def main(folder: Path) -> None:
    artifact = read_artifact(folder)  # checks types, shapes and bounds of everything
    program = artifact.program
    print(f"compiled from {artifact.provenance.source}")
    for op, count in Counter(instruction.op for instruction in program.instructions).most_common():
        print(f"{count:5} {op}")
    cached = sum(
        component.shape[0] * component.shape[1]
        for state in program.states
        if state.kind == "paged"
        for component in state.components
    )
    print(f"{cached} numbers are kept in the caches for each token")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
