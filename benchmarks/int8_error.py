"""Error of the logits with int8 activations, ours and llama.cpp's, on the same .gguf file.

    python benchmarks/int8_error.py MODEL.gguf ARTIFACT --llama-cpp-python PYTHON [--text FILE...] [--pieces 160]

ARTIFACT is the compiled MODEL.gguf. Both are compared with our exact mode (float32 activations times the dequantized
weights), as parts of its largest logit: pieces of 64 tokens of the texts, and of random token ids.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from autodeploy._load_native import load_native

LENGTH, EVERY = 64, 4  # tokens of a piece; every 4th row of logits is compared
_RIVAL = f"""
import sys
import numpy as np
from llama_cpp import Llama
model, pieces, out = sys.argv[1:]
llm = Llama(model, n_ctx={2 * LENGTH}, verbose=False, logits_all=True)
rows = []
for piece in np.load(pieces).tolist():
    llm.reset()
    llm.eval(piece)
    rows.append(np.array(llm.scores[:{LENGTH}:{EVERY}], dtype=np.float32))
np.save(out, np.stack(rows))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--llama-cpp-python", metavar="PYTHON", required=True)
    parser.add_argument("--text", type=Path, nargs="+", default=sorted(Path("docs").glob("*.md")))
    parser.add_argument("--pieces", type=int, default=160)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.artifact / "tokenizer.json"))
    ids = tokenizer.encode("".join(p.read_text() for p in args.text)).ids
    count = min(args.pieces, len(ids) // LENGTH)
    text = np.array(ids[: count * LENGTH], dtype=np.int64).reshape(count, LENGTH)
    noise = np.random.default_rng(0).integers(100, tokenizer.get_vocab_size() - 100, (args.pieces, LENGTH))
    for name, pieces in (("text", text), ("random ids", noise)):
        exact = logits(args.artifact, pieces, exact=True)
        found = {"autodeploy": logits(args.artifact, pieces, exact=False), "llama.cpp": rival_logits(args, pieces)}
        for engine, values in found.items():
            error = (values - exact) / np.abs(exact).max()
            agree = (values.argmax(-1) == exact.argmax(-1)).mean()
            rms, worst = np.sqrt((error**2).mean()), np.abs(error).max()
            figures = f"rms {rms:.5f}  worst {worst:.3f}  same argmax {agree:.3f}"
            print(f"{name:10} {len(pieces)} pieces  {engine:10} {figures}")


def logits(artifact: Path, pieces: np.ndarray, exact: bool) -> np.ndarray:
    """float32 [pieces, rows, vocabulary] of our runtime."""
    runner = load_native().Runner(
        str(artifact), max_tokens=LENGTH, max_seqs=1, max_seq_len=LENGTH, num_threads=2, exact=exact
    )
    batch = {"query_start": [0, LENGTH], "kv_len": [LENGTH], "slot": [0], "has_state": [0]}
    batch |= {"positions": np.arange(LENGTH), "rows": list(range(0, LENGTH, EVERY))}
    return np.stack([runner.step(token_ids=piece, **batch)["logits"].copy() for piece in pieces])


def rival_logits(args: argparse.Namespace, pieces: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "pieces.npy"), Path(folder, "logits.npy")
        np.save(given, pieces)
        subprocess.run([args.llama_cpp_python, "-c", _RIVAL, args.model, str(given), str(out)], check=True)
        return np.load(out)


if __name__ == "__main__":
    main()
