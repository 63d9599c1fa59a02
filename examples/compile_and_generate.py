"""Compile a model into an artifact, then answer a prompt with it.

    python examples/compile_and_generate.py [MODEL] [ARTIFACT FOLDER]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from autodeploy import LLM, SamplingParams


def main(model: str, artifact: Path) -> None:
    # The compiler runs in a process of its own: this one never imports torch.
    subprocess.run([sys.executable, "-m", "autodeploy", "compile", model, "-o", str(artifact)], check=True)
    with LLM(artifact) as llm:
        (output,) = llm.generate("The capital of France is", SamplingParams(max_tokens=16, temperature=0.0))
        print(output.prompt + output.text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        named = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
        main(named, Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder) / "artifact")
