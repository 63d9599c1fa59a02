"""`LLM` over the C++ engine, on a tiny model."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from autodeploy import LLM, SamplingParams
from devices import DEVICES
from tiny_workshop import environment, has_engine, make_checkpoint, run_python

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_engine(), reason="the C++ engine was not built")]

PROMPTS = ["The answer", "one two three", "a", "the quick brown fox jumps over the lazy dog and then"]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A compiled tiny model; the first `LLM` of a checkpoint compiles it into the cache."""
    folder = tmp_path_factory.mktemp("native")
    checkpoint = make_checkpoint(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder / "cache").items():
            patch.setenv(name, value)
        with LLM(checkpoint, max_seq_len=64) as llm:
            return llm.artifact_dir


@pytest.fixture(scope="module")
def llm(artifact):
    with LLM(artifact, max_seq_len=256, max_num_seqs=4, max_batch_tokens=32, threads=1) as made:
        yield made


def tokens(llm, prompts, params):
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


def test_together_as_alone(llm):
    together = tokens(llm, PROMPTS, GREEDY)
    assert together == [tokens(llm, prompt, GREEDY)[0] for prompt in PROMPTS]
    assert all(len(ids) == 24 for ids in together)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_without_rows_on_a_device(device, artifact, llm):
    """The steps of a prompt in chunks give no tokens, and find none of those of an earlier request."""
    prompt = list(range(20, 70))
    limits = {"max_seq_len": 64, "max_num_seqs": 2, "max_batch_tokens": 16, "cache_memory": "16MiB", "threads": 1}
    greedy = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    with LLM(artifact, device=device, dtype="float32", **limits) as other:
        assert tokens(other, [prompt[:3]], greedy) == tokens(llm, [prompt[:3]], greedy)
        assert tokens(other, [prompt], greedy) == tokens(llm, [prompt], greedy)


def test_streams_are_the_same_text(llm):
    (whole,) = llm.generate(PROMPTS[0], GREEDY)
    outputs = list(llm.stream(PROMPTS[0], GREEDY))
    assert "".join(output.outputs[0].delta for output in outputs) == whole.text == outputs[-1].text
    assert len(outputs) > 5

    async def main():
        return [output.outputs[0].delta async for output in llm.generate_async(PROMPTS[0], GREEDY)]

    assert "".join(asyncio.run(main())) == whole.text


def test_text_is_that_of_the_tokens(llm):
    for output in llm.generate(PROMPTS, GREEDY):
        prompt = llm.tokenizer.decode(output.prompt_token_ids)
        assert prompt + output.text == llm.tokenizer.decode(output.prompt_token_ids + output.outputs[0].token_ids)


def test_a_seed_reproduces_whatever_runs_beside_it(llm):
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=5, ignore_eos=True)
    alone = tokens(llm, PROMPTS[1], params)[0]
    assert tokens(llm, PROMPTS, params)[1] == alone
    assert tokens(llm, PROMPTS[1], SamplingParams(max_tokens=20, temperature=1.0, seed=6, ignore_eos=True))[0] != alone


def test_completions_follow_their_seeds(llm):
    params = SamplingParams(max_tokens=8, temperature=1.0, ignore_eos=True, n=3, seed=5)
    (output,) = llm.generate(PROMPTS[0], params)
    for index, completion in enumerate(output.outputs):
        single = SamplingParams(max_tokens=8, temperature=1.0, ignore_eos=True, seed=5 + index)
        assert completion.token_ids == tokens(llm, PROMPTS[0], single)[0]


def test_threads_do_not_matter(artifact, llm):
    with LLM(artifact, max_seq_len=256, max_num_seqs=4, max_batch_tokens=32, threads=2) as other:
        assert tokens(other, PROMPTS, GREEDY) == tokens(llm, PROMPTS, GREEDY)


def test_steering(llm):
    (greedy,) = tokens(llm, PROMPTS[0], GREEDY)
    forced = SamplingParams(max_tokens=3, temperature=0.0, logit_bias={7: 100.0}, ignore_eos=True)
    assert tokens(llm, PROMPTS[0], forced)[0] == [7, 7, 7]
    stopping = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, stop_token_ids=[greedy[5]])
    stopped = llm.generate(PROMPTS[0], stopping)[0].outputs[0]
    assert stopped.token_ids == greedy[: greedy.index(greedy[5]) + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", greedy[5])
    banned = SamplingParams(max_tokens=24, temperature=0.0, logit_bias={greedy[0]: -100.0}, ignore_eos=True)
    assert greedy[0] not in tokens(llm, PROMPTS[0], banned)[0]


def test_a_stop_string(llm):
    (whole,) = llm.generate(PROMPTS[0], GREEDY)
    stop = whole.text[6:9]
    (output,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, stop=stop))
    assert output.text == whole.text[: whole.text.index(stop)]
    assert output.outputs[0].stop_reason == stop


def test_logprobs(llm):
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=5)
    (output,) = llm.generate(PROMPTS[0], params)
    completion = output.outputs[0]
    assert len(completion.logprobs) == 4
    for token_id, place in zip(completion.token_ids, completion.logprobs, strict=True):
        assert next(iter(place)) == token_id
        assert place[token_id].rank == 1
        assert len(place) == 5
        values = [found.logprob for found in place.values()]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0001


def test_bad_requests_leave_the_engine_alone(llm):
    long = [5] * 256
    for prompt, params in [("", GREEDY), ([long], GREEDY), ([[10**7]], GREEDY)]:
        with pytest.raises(ValueError, match=r"^\[prompt\]"):
            llm.generate(prompt, params)
    assert llm.generate([5] * 255, SamplingParams(max_tokens=9))[0].outputs[0].finish_reason in ("length", "stop")


def test_leaving_early_frees_everything(llm):
    for _ in range(3):
        stream = llm.stream(PROMPTS[3], SamplingParams(max_tokens=200, ignore_eos=True))
        next(stream)
        stream.close()
    deadline = time.monotonic() + 10
    while llm.stats()["num_running"] or llm.stats()["num_waiting"] or llm.stats()["cache_used_bytes"]:
        assert time.monotonic() < deadline, llm.stats()
        time.sleep(0.01)
    assert llm.health() is None


def test_the_plan_adds_up(llm):
    memory = llm.plan()["memory"]
    parts = ("weights", "arena", "caches", "sampler", "books")
    assert memory["total"] == sum(memory[name] for name in parts)
    assert llm.max_seq_len == 256


def test_options_that_cannot_be(artifact):
    with pytest.raises((ValueError, MemoryError), match=r"^\["):
        LLM(artifact, max_seq_len=1024, cache_memory=1000)
    with pytest.raises(ValueError, match="max_seq_len"):
        LLM(artifact, max_seq_len=2**20)


def test_a_damaged_artifact(artifact, tmp_path):
    import shutil

    for name in ("program.json", "weights.json", "tokenizer.json", "generation_config.json"):
        broken = tmp_path / name.split(".")[0]
        shutil.copytree(artifact, broken)
        (broken / name).write_bytes((broken / name).read_bytes()[:-20])
        with pytest.raises((ValueError, OSError), match=r"^\[") as caught:
            LLM(broken)
        assert name.split(".")[0].split("_")[0] in str(caught.value)


def test_serving_needs_neither_torch_nor_transformers(artifact, tmp_path):
    script = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "numpy", "safetensors", "gguf"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from autodeploy import LLM, SamplingParams
with LLM(sys.argv[1], max_seq_len=64) as llm:
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    (output,) = llm.chat([{"role": "user", "content": "hi"}], SamplingParams(max_tokens=3, ignore_eos=True))
    print(len(output.outputs[0].token_ids))
"""
    done = run_python(script, tmp_path, tmp_path, str(artifact))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"


def test_ctrl_c_ends_a_program_cleanly(artifact, tmp_path):
    script = """
import sys
from autodeploy import LLM, SamplingParams
with LLM(sys.argv[1], threads=2) as llm:
    for output in llm.stream("the", SamplingParams(max_tokens=1000, ignore_eos=True)):
        print("token", flush=True)
        if len(output.outputs[0].token_ids) > 5:
            llm.generate(["the", "fox"] * 400, SamplingParams(max_tokens=900, ignore_eos=True))
"""
    command = [sys.executable, "-c", script, str(artifact)]
    process = subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(6):
        process.stdout.readline()
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err.splitlines()[-1]
    assert process.returncode in (1, -signal.SIGINT, 130)


def test_a_forgotten_close_does_not_hang(artifact, tmp_path):
    script = """
import sys
from autodeploy import LLM, SamplingParams
llm = LLM(sys.argv[1], max_seq_len=64)
stream = llm.stream("the", SamplingParams(max_tokens=50, ignore_eos=True))
next(stream)
print("end")
"""
    done = run_python(script, tmp_path, tmp_path, str(artifact))
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_an_idle_engine_sleeps(llm):
    from autodeploy.cli.bench.protocol import cpu_seconds

    llm.generate("the", SamplingParams(max_tokens=2))
    time.sleep(0.5)
    before = cpu_seconds(os.getpid())
    time.sleep(3.0)
    assert (cpu_seconds(os.getpid()) - before) / 3.0 < 0.005
