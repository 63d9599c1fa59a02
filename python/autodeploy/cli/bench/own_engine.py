"""Our engine's process: `LLM` on an artifact or a checkpoint."""

from __future__ import annotations

from typing import Any

from autodeploy.cli.bench import cases
from autodeploy.cli.bench.protocol import Engine, serve


def make_engine(options: dict[str, Any]) -> tuple[Engine, dict[str, Any]]:
    """The engine and its facts: version, plan of the memory, kernels."""
    import autodeploy
    from autodeploy import LLM, SamplingParams

    llm = LLM(
        options["model"],
        max_seq_len=cases.MAX_SEQ_LEN,
        max_batch_tokens=cases.MAX_BATCH_TOKENS,
        max_num_seqs=cases.MAX_NUM_SEQS,
        threads=options["threads"],
        exact=options.get("exact", False),
        load_format=options.get("load_format", "auto"),
        dummy_seed=options.get("dummy_seed", 0),
        progress=False,
    )
    rounds = 0

    def measure(case: dict[str, Any]) -> float:
        nonlocal rounds
        rounds += 1
        prompts = [
            cases.prompt_ids(llm.vocab_size, case["prompt_len"], 1000 * rounds + i) for i in range(case["num_seqs"])
        ]
        params = SamplingParams(temperature=0.0, max_tokens=case["num_tokens"], ignore_eos=True)
        outputs = llm.generate(prompts, params, progress=False)
        if case["kind"] == "prefill":
            return case["prompt_len"] / outputs[0].metrics.time_to_first_token
        begin = max(output.metrics.first_token_time for output in outputs)
        end = max(output.metrics.finish_time for output in outputs)
        return case["num_seqs"] * (case["num_tokens"] - 1) / (end - begin)

    plan = llm.plan()
    facts = {"version": autodeploy.__version__, "memory_plan": plan.get("memory", {}), "limits": plan.get("limits", {})}
    return measure, facts | {"artifact": str(llm.artifact_dir)}


if __name__ == "__main__":
    serve(make_engine)
