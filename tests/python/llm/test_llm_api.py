"""`LLM` over an engine made of a few lines of Python."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref

import pytest
from llm_fakes import CHAT_TEMPLATE, FakeEngine, byte_level_tokenizer, scripted, write_fake_artifact

from autodeploy import LLM, RequestError, SamplingParams
from autodeploy.llm import EngineError

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|end|>")


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


@pytest.fixture
def artifact(tmp_path):
    return write_fake_artifact(tmp_path / "artifact", TOKENIZER, {"eos_token_id": END}, CHAT_TEMPLATE)


@pytest.fixture
def open_llm(artifact):
    opened = []

    def open_with(next_token, **engine_options):
        engine = FakeEngine(next_token, vocab_size=TOKENIZER.get_vocab_size(), **engine_options)
        llm = LLM(artifact, engine_factory=lambda folder, options, progress: engine)
        llm.engine = engine
        opened.append(llm)
        return llm

    yield open_with
    for llm in opened:
        llm.close()


def echo(prompt, generated, params):
    """Says the prompt again, then ends."""
    return prompt[len(generated)] if len(generated) < len(prompt) else END


def test_generate_keeps_order_and_runs_together(open_llm):
    llm = open_llm(echo, step_seconds=0.005)
    prompts = [f"the fox number {i} jumps" + " over" * (7 - i) for i in range(8)]
    outputs = llm.generate(prompts)
    assert [output.text for output in outputs] == prompts
    assert [output.prompt for output in outputs] == prompts
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    assert {output.outputs[0].stop_reason for output in outputs} == {END}
    assert outputs[0].outputs[0].token_ids == [*encode(prompts[0]), END]
    assert outputs[0].prompt_token_ids == encode(prompts[0])
    assert llm.engine.most_together > 1


def test_one_prompt_of_each_kind(open_llm):
    llm = open_llm(echo)
    assert llm.generate("the dog")[0].text == "the dog"
    assert llm.generate(encode("the dog"))[0].text == "the dog"
    outputs = llm.generate([encode("the dog"), "the fox"])
    assert [output.text for output in outputs] == ["the dog", "the fox"]
    assert outputs[0].prompt is None
    assert llm.generate([]) == []


def test_length_and_metrics(open_llm):
    llm = open_llm(scripted(encode("the quick brown fox jumps")))
    (output,) = llm.generate("go", SamplingParams(max_tokens=3))
    completion = output.outputs[0]
    assert completion.finish_reason == "length"
    assert completion.stop_reason is None
    assert completion.token_ids == encode("the quick brown fox jumps")[:3]
    assert output.finished
    metrics = output.metrics
    assert metrics.num_generated_tokens == 3
    assert metrics.num_prompt_tokens == len(encode("go"))
    assert 0 <= metrics.time_to_first_token <= metrics.finish_time - metrics.arrival_time


def test_max_tokens_is_cut_to_what_fits(open_llm):
    llm = open_llm(scripted(encode("x")), max_seq_len=20)
    (output,) = llm.generate(encode("the fox")[:2], SamplingParams(max_tokens=1000))
    assert len(output.outputs[0].token_ids) == 18
    assert output.outputs[0].finish_reason == "length"


def test_stop_string_across_tokens(open_llm):
    llm = open_llm(scripted(encode("hello world, how are you? I am fine.")), step_seconds=0.001)
    (output,) = llm.generate("go", SamplingParams(stop=["d, how", "never"], max_tokens=100))
    completion = output.outputs[0]
    assert completion.text == "hello worl"
    assert completion.finish_reason == "stop"
    assert completion.stop_reason == "d, how"
    (output,) = llm.generate("go", SamplingParams(stop="d, how", include_stop_str=True))
    assert output.text == "hello world, how"
    deadline = time.monotonic() + 5
    while llm.stats()["num_running"]:
        assert time.monotonic() < deadline, "the engine was not told to cancel"


def test_stop_string_counts_only_after_min_tokens(open_llm):
    tokens = encode("fox fox fox fox fox")
    llm = open_llm(scripted(tokens))
    (output,) = llm.generate("go", SamplingParams(stop="fox", min_tokens=len(tokens), max_tokens=len(tokens)))
    assert output.text == "fox fox fox fox "
    (output,) = llm.generate("go", SamplingParams(stop="fox"))
    assert output.text == ""


def test_stop_token_text_is_left_out_unless_asked(open_llm):
    tokens = encode("the fox jumps")
    llm = open_llm(scripted(tokens))
    (output,) = llm.generate("go", SamplingParams(stop_token_ids=[tokens[-1]]))
    assert output.outputs[0].stop_reason == tokens[-1]
    assert output.outputs[0].token_ids == tokens
    assert output.text == TOKENIZER.decode(tokens[:-1])
    (output,) = llm.generate("go", SamplingParams(stop_token_ids=[tokens[-1]], include_stop_str=True))
    assert output.text == "the fox jumps"


def test_many_completions(open_llm):
    llm = open_llm(lambda prompt, generated, params: encode("abcdefgh")[params["seed"] % 8])
    (output,) = llm.generate("go", SamplingParams(n=3, temperature=1, seed=0, max_tokens=2))
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert [completion.text for completion in output.outputs] == ["aa", "bb", "cc"]
    assert output.metrics.num_generated_tokens == 6


def test_logprobs(open_llm):
    tokens = encode("fox")
    llm = open_llm(scripted(tokens))
    (output,) = llm.generate("go", SamplingParams(logprobs=2, max_tokens=1))
    (entry,) = output.outputs[0].logprobs
    assert list(entry) == [tokens[0], tokens[0] + 1]
    assert entry[tokens[0]].logprob == -0.5
    assert entry[tokens[0]].rank == 1
    assert entry[tokens[0] + 1].rank == 2
    assert entry[tokens[0]].token == TOKENIZER.decode([tokens[0]])
    assert llm.generate("go", SamplingParams(max_tokens=1))[0].outputs[0].logprobs is None


def test_stream(open_llm):
    llm = open_llm(echo)
    prompt = "größer the 日本 fox"
    outputs = list(llm.stream(prompt))
    assert "".join(output.outputs[0].delta for output in outputs) == prompt == outputs[-1].text
    for before, after in itertools.pairwise(outputs):
        assert after.text.startswith(before.text)
        assert "�" not in after.text
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert [i for output in outputs for i in output.outputs[0].delta_token_ids] == [*encode(prompt), END]


def test_leaving_a_stream_early_cancels(open_llm):
    llm = open_llm(scripted(encode("x")), step_seconds=0.002, max_seq_len=100000)
    stream = llm.stream("go", SamplingParams(max_tokens=90000))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while llm.stats()["num_running"]:
        assert time.monotonic() < deadline


def test_async_streams_run_together_and_cancel(open_llm):
    llm = open_llm(echo, step_seconds=0.002)

    async def collect(prompt: str) -> str:
        return "".join([output.outputs[0].delta async for output in llm.generate_async(prompt)])

    async def leave_early() -> None:
        stream = llm.generate_async("the fox jumps over the dog")
        async for _ in stream:
            break
        await stream.aclose()

    async def main() -> list[str]:
        await leave_early()
        return await asyncio.gather(*(collect(f"the fox {i}") for i in range(5)))

    assert asyncio.run(main()) == [f"the fox {i}" for i in range(5)]
    assert llm.engine.most_together > 1


def test_chat(open_llm):
    llm = open_llm(echo)
    messages = [{"role": "user", "content": "hello"}]
    text = "<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    assert llm.render_chat(messages) == text
    (output,) = llm.chat(messages, SamplingParams(ignore_eos=True, max_tokens=6))
    assert output.prompt == text
    assert output.prompt_token_ids == encode(text)
    two = llm.chat([messages, [*messages, {"role": "assistant", "content": "hi"}]], SamplingParams(max_tokens=1))
    assert len(two) == 2
    assert list(llm.chat_stream(messages, SamplingParams(max_tokens=2)))[-1].finished

    async def main() -> list[bool]:
        return [output.finished async for output in llm.chat_async(messages, SamplingParams(max_tokens=2))]

    assert asyncio.run(main())[-1]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([[]], "empty"),
        (["fine", ""], "empty"),
        ("word " * 200, r"at most 127 tokens, found \d+"),
        ([[5, -1]], "token ids from 0"),
        ([[5, 10**6]], "token ids from 0"),
        ([[5, 1.5]], "token ids from 0"),
        ([[True]], "token ids from 0"),
        (None, "expected a text"),
        ([None], "expected a text"),
        ("bad \ud800 surrogate", "UTF-8"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(open_llm, prompt, message):
    llm = open_llm(echo)
    with pytest.raises(ValueError, match=message):
        llm.generate(prompt)
    assert llm.engine.added == []


def test_bad_params(open_llm):
    llm = open_llm(echo)
    with pytest.raises(ValueError, match="SamplingParams"):
        llm.generate("x", {"temperature": 1})
    with pytest.raises(ValueError, match="2 of them"):
        llm.generate(["x", "y"], [SamplingParams()])


def test_a_fault_stays_with_its_request(open_llm):
    def model(prompt, generated, params):
        if prompt == encode("bad"):
            raise ValueError("the logits of this row are not numbers")
        return echo(prompt, generated, params)

    llm = open_llm(model)
    with pytest.raises(RequestError, match="prompt 1: the logits of this row") as caught:
        llm.generate(["good", "bad", "fine"])
    outputs = caught.value.outputs
    assert [output.outputs[0].finish_reason for output in outputs] == ["stop", "error", "stop"]
    assert outputs[2].text == "fine"
    with pytest.raises(RequestError):
        list(llm.stream("bad"))
    assert llm.generate("good")[0].text == "good"


def test_an_engine_that_stops_ends_every_request_with_one_clear_error(open_llm):
    def model(prompt, generated, params):
        if len(generated) == 3:
            raise RuntimeError("the device is gone")
        return encode("x")[0]

    llm = open_llm(model)
    with pytest.raises(RequestError, match="the engine stopped: the device is gone"):
        llm.generate(["a", "b"])
    with pytest.raises(EngineError, match="the device is gone"):
        llm.generate("c")
    assert llm.health() == "the device is gone"


def test_ctrl_c_cancels_and_the_engine_goes_on(open_llm):
    import signal

    llm = open_llm(scripted(encode("x")), step_seconds=0.002, max_seq_len=100000)
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], SamplingParams(max_tokens=90000))
    assert time.monotonic() - started < 10
    timer.join()
    assert llm.generate("a", SamplingParams(max_tokens=2))[0].finished


def test_close(open_llm):
    llm = open_llm(scripted(encode("x")), step_seconds=0.002, max_seq_len=100000)
    errors = []

    def wait() -> None:
        try:
            llm.generate("a", SamplingParams(max_tokens=90000))
        except RequestError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not llm.stats()["num_running"]:
        pass
    llm.close()
    llm.close()
    waiting.join(10)
    assert errors == ["[request] prompt 0: the engine was closed"]
    assert llm.engine.closed
    with pytest.raises(EngineError, match="closed"):
        llm.generate("a")


def test_context_manager_and_collection(artifact):
    engine = FakeEngine(echo)
    with LLM(artifact, engine_factory=lambda *_: engine):
        pass
    assert engine.closed
    other = FakeEngine(echo)
    llm = LLM(artifact, engine_factory=lambda *_: other)
    alive = weakref.ref(llm)
    del llm
    gc.collect()
    assert alive() is None
    assert other.closed


def test_without_tokenizer_token_ids_serve(tmp_path):
    folder = write_fake_artifact(tmp_path / "bare", None)
    with LLM(folder, engine_factory=lambda *_: FakeEngine(scripted([7, 8, 9]))) as llm:
        (output,) = llm.generate([1, 2], SamplingParams(max_tokens=2))
        assert output.outputs[0].token_ids == [7, 8]
        assert output.text == ""
        with pytest.raises(ValueError, match="no tokenizer"):
            llm.generate("text")
        with pytest.raises(ValueError, match="no tokenizer"):
            llm.generate([1], SamplingParams(stop="x"))
        with pytest.raises(ValueError, match="no chat template"):
            llm.chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_len": 0},
        {"max_seq_len": 1},
        {"max_seq_len": 2.0},
        {"max_num_seqs": -1},
        {"max_batch_tokens": True},
        {"cache_memory": "much"},
        {"cache_memory": 0},
        {"threads": 0},
        {"dtype": "bfloat16"},
        {"exact": 1},
        {"revision": "main"},
    ],
)
def test_bad_options(artifact, options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        LLM(artifact, engine_factory=lambda *_: pytest.fail("an engine was made"), **options)


def test_options_reach_the_engine(artifact, monkeypatch):
    seen = []

    def factory(folder, options, progress):
        progress(1, 2)
        seen.append((folder, options.to_native()))
        return FakeEngine(echo)

    monkeypatch.setenv("AUTODEPLOY_NUM_THREADS", "3")
    with LLM(artifact, max_seq_len=64, cache_memory="1MiB", exact=True, engine_factory=factory):
        pass
    expected = {"max_seq_len": 64, "cache_bytes": 1 << 20, "num_threads": 3, "exact": True}
    assert seen == [(artifact.resolve(), expected)]


def test_threads_share_one_engine(open_llm):
    llm = open_llm(echo)
    texts: dict[int, str] = {}

    def ask(i: int) -> None:
        texts[i] = llm.generate(f"number {i}")[0].text

    threads = [threading.Thread(target=ask, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: f"number {i}" for i in range(8)}
