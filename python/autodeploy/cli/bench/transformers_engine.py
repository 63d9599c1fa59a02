"""The process of transformers in float32, with its own key and value cache and no padding."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from autodeploy.cli.bench.cases import prompt_ids
from autodeploy.cli.bench.protocol import Engine, serve


def make_engine(options: dict[str, Any]) -> tuple[Engine, dict[str, Any]]:
    """The model in float32, weights of a .gguf file dequantized."""
    import torch
    import transformers

    torch.set_num_threads(options["threads"])
    path = Path(options["model"])
    folder, extra = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra).eval()
    vocab_size = model.config.get_text_config().vocab_size
    rounds = 0

    @torch.inference_mode()
    def measure(case: dict[str, Any]) -> float:
        nonlocal rounds
        rounds += 1
        ids = [prompt_ids(vocab_size, case["prompt_len"], 1000 * rounds + i) for i in range(case["num_seqs"])]
        begin = time.perf_counter()
        out = model(torch.tensor(ids), use_cache=True, logits_to_keep=1)
        tokens = out.logits[:, -1:].argmax(-1)
        if case["kind"] == "prefill":
            return case["prompt_len"] / (time.perf_counter() - begin)
        begin = time.perf_counter()
        for _ in range(case["num_tokens"] - 1):
            out = model(tokens, past_key_values=out.past_key_values, use_cache=True)
            tokens = out.logits[:, -1:].argmax(-1)
        return case["num_seqs"] * (case["num_tokens"] - 1) / (time.perf_counter() - begin)

    return measure, {"version": transformers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    serve(make_engine)
