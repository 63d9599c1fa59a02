"""The process of llama.cpp, through llama-cpp-python's low-level interface, for `autodeploy bench --engine`.

    autodeploy bench model.gguf --engine llama.cpp=/path/to/python:benchmarks/llama_cpp_engine.py

It gets the least overhead that Python allows: whole batches go to llama_decode; the next token is the largest logit.
"""

from __future__ import annotations

import time
from typing import Any

from autodeploy.cli.bench.cases import MAX_BATCH_TOKENS, MAX_NUM_SEQS, MAX_SEQ_LEN, prompt_ids
from autodeploy.cli.bench.protocol import Engine, serve


def make_engine(options: dict[str, Any]) -> tuple[Engine, dict[str, Any]]:
    """The model of a .gguf file."""
    import llama_cpp
    import numpy as np

    if not options["model"].endswith(".gguf"):
        raise ValueError("it reads .gguf files only")
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(options["model"].encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise ValueError(f"it cannot read {options['model']}")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = MAX_SEQ_LEN * MAX_NUM_SEQS
    params.n_batch = params.n_ubatch = MAX_BATCH_TOKENS
    params.n_seq_max = MAX_NUM_SEQS
    params.n_threads = params.n_threads_batch = options["threads"]
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise ValueError("it cannot make a context")
    batch = llama_cpp.llama_batch_init(MAX_BATCH_TOKENS, 0, 1)
    rounds = 0

    def decode(entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run a batch of (token, position, sequence, wants logits); the likeliest next token of those that want one."""
        batch.n_tokens = len(entries)
        for place, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = wanted
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        rows = [place for place, entry in enumerate(entries) if entry[3]]
        logits = (llama_cpp.llama_get_logits_ith(context, place) for place in rows)
        return [int(np.ctypeslib.as_array(row, shape=(vocab_size,)).argmax()) for row in logits]

    def measure(case: dict[str, Any]) -> float:
        nonlocal rounds
        rounds += 1
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        num_seqs, prompt_len = case["num_seqs"], case["prompt_len"]
        prompts = [prompt_ids(vocab_size, prompt_len, 1000 * rounds + i) for i in range(num_seqs)]
        entries = [
            (token, position, sequence, position + 1 == prompt_len)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        begin = time.perf_counter()
        tokens = decode(entries)
        if case["kind"] == "prefill":
            return prompt_len / (time.perf_counter() - begin)
        begin = time.perf_counter()
        for step in range(case["num_tokens"] - 1):
            tokens = decode([(token, prompt_len + step, sequence, True) for sequence, token in enumerate(tokens)])
        return num_seqs * (case["num_tokens"] - 1) / (time.perf_counter() - begin)

    return measure, {"version": llama_cpp.__version__}


if __name__ == "__main__":
    serve(make_engine)
