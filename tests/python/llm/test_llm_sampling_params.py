from __future__ import annotations

import math

import pytest

from autodeploy.llm.generation_defaults import GenerationDefaults, parse_generation_config
from autodeploy.llm.sampling_params import SamplingParams, resolve_params

BAD = {
    "n": [0, 65, 1.5, True, "2"],
    "max_tokens": [0, -1, 2.0, True],
    "min_tokens": [-1, 1.0],
    "temperature": [-0.1, 1e-5, math.nan, math.inf, 101, "hot", True],
    "top_k": [-1, 1.5, True],
    "top_p": [0, -0.1, 1.01, math.nan],
    "min_p": [-0.1, 1.1, math.nan],
    "repetition_penalty": [0, -1, 101, math.nan],
    "presence_penalty": [math.inf, -2.1],
    "frequency_penalty": ["x", 2.1],
    "logit_bias": [{-1: 0.0}, {0: math.nan}, {0: 101}, {0: math.inf}, {0: -math.inf}, {"a": 1.0}, [1]],
    "seed": [-1, 2**63, 1.0],
    "stop": [[""], [1], "", 5, ["x"] * 65, ["x" * 4097]],
    "stop_token_ids": [[-1], ["a"], 3, "ab", [True]],
    "logprobs": [-1, 129, True, 1.0],
    "include_stop_str": [1, None],
    "ignore_eos": ["yes"],
    "skip_special_tokens": [0],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^\[sampling\] {field}: expected .*, found "):
        SamplingParams(**{field: value})


def test_min_tokens_above_max_tokens():
    with pytest.raises(ValueError, match="min_tokens"):
        SamplingParams(max_tokens=3, min_tokens=4)


def test_unknown_field():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1)


def resolve(params: SamplingParams, defaults: GenerationDefaults | None = None, **sizes: int) -> list[dict]:
    sizes = {"vocab_size": 100, "num_prompt_tokens": 10, "max_seq_len": 1000} | sizes
    return resolve_params(params, defaults or GenerationDefaults(), **sizes)


def test_plain_defaults_are_greedy():
    (params,) = resolve(SamplingParams())
    assert (params["temperature"], params["top_k"], params["top_p"], params["min_p"]) == (0.0, 0, 1.0, 0.0)
    assert params["max_tokens"] == 256


def test_generation_config_fills_what_is_not_given():
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 7}
    defaults = parse_generation_config(config | {"eos_token_id": [2, 5, 2], "suppress_tokens": [8]})
    (params,) = resolve(SamplingParams(top_p=0.5, logit_bias={8: 1.0, 9: -1}), defaults)
    assert (params["temperature"], params["top_k"], params["top_p"]) == (0.6, 50, 0.5)
    assert (params["repetition_penalty"], params["max_tokens"], params["eos_token_ids"]) == (1.1, 7, [2, 5])
    assert params["logit_bias"] == {8: 1.0, 9: -1.0}
    (params,) = resolve(SamplingParams(), defaults)
    assert params["logit_bias"] == {8: -100.0}


def test_generation_config_without_do_sample_is_greedy():
    defaults = parse_generation_config({"temperature": 0.6, "top_k": 20, "eos_token_id": 2})
    (params,) = resolve(SamplingParams(), defaults)
    assert (params["temperature"], params["top_k"], params["eos_token_ids"]) == (0.0, 0, [2])


@pytest.mark.parametrize(
    "config",
    [{"do_sample": True, "temperature": "x"}, {"eos_token_id": "2"}, {"eos_token_id": [-1]}, {"max_new_tokens": 0}],
)
def test_broken_generation_config(config):
    with pytest.raises(ValueError, match=r"^\[generation config\]"):
        parse_generation_config(config)


def test_max_tokens_is_cut_to_the_room():
    (params,) = resolve(SamplingParams(max_tokens=500, min_tokens=400), num_prompt_tokens=90, max_seq_len=100)
    assert params["max_tokens"] == 10
    assert params["min_tokens"] == 10


def test_min_tokens_raises_the_default_max_tokens():
    assert resolve(SamplingParams(min_tokens=300))[0]["max_tokens"] == 300


def test_ids_beyond_the_vocabulary():
    with pytest.raises(ValueError, match=r"stop_token_ids.*vocabulary size 100"):
        resolve(SamplingParams(stop_token_ids=[100]))
    with pytest.raises(ValueError, match="logit_bias"):
        resolve(SamplingParams(logit_bias={100: 1}))


def test_seeds():
    assert [p["seed"] for p in resolve(SamplingParams(n=3, temperature=1, seed=7))] == [7, 8, 9]
    drawn = [resolve(SamplingParams())[0]["seed"] for _ in range(4)]
    assert len(set(drawn)) == 4


def test_many_equal_completions_are_refused():
    with pytest.raises(ValueError, match=r"n: expected 1 where the temperature is 0"):
        resolve(SamplingParams(n=2))
