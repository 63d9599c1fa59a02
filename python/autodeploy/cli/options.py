"""Flags that several commands share."""

from __future__ import annotations

import argparse
import math
from typing import Any

from autodeploy.llm.sampling_params import SamplingParams


def add_model_arguments(parser: argparse.ArgumentParser, *, artifact: bool = True, optional: bool = False) -> None:
    """MODEL and how it may be fetched and read."""
    kinds = "checkpoint folder, .gguf file, hub id or alias" + (", or artifact folder" if artifact else "")
    parser.add_argument("model", metavar="MODEL", help=kinds, nargs="?" if optional else None)
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let Python code of the checkpoint run while compiling"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        dest="plugins",
        metavar="LIB",
        help="shared library with kernels for the model author's own operators; may be repeated",
    )


def add_load_format(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Where weights come from."""
    parser.add_argument(
        "--load-format",
        choices=("auto", "dummy"),
        default="auto",
        help="dummy: no weights are read and none need to be there, they are made up (default: auto)",
    )


def add_dummy_seed(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--dummy-seed", type=int, default=0, metavar="N", help="what made-up weights are made from")


def add_dummy_routing(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--dummy-routing",
        choices=("model", "uniform"),
        default="model",
        help="uniform: with made-up weights, experts are drawn from the seed, each as likely as any other",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Limits and choices of the engine."""
    group = parser.add_argument_group("engine")
    group.add_argument("--max-seq-len", type=int, metavar="N", help="tokens of the longest sequence, prompt and answer")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="sequences that run together")
    group.add_argument("--max-batch-tokens", type=int, metavar="N", help="tokens of the largest step")
    group.add_argument("--cache-memory", metavar="SIZE", help="memory of the caches, such as 2GiB")
    group.add_argument(
        "--gpu-memory-fraction", type=float, metavar="X", help="part of a GPU's memory that may be in use (default 0.9)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="threads of the engine (default: all cores)")
    group.add_argument("--device", metavar="DEVICE", help="cpu (default), cuda or cuda:N")
    group.add_argument("--dtype", default="auto", help="of activations: auto, float32, bfloat16, float16")
    add_load_format(group)
    add_dummy_seed(group)
    add_dummy_routing(group)
    group.add_argument("--exact", action="store_true", help="no fast paths that round activations to 8 bits")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `LLM` from the flags of a model and an engine."""
    names: tuple[str, ...] = ("max_seq_len", "max_num_seqs", "max_batch_tokens", "cache_memory", "threads")
    names += ("device", "dtype", "exact")
    names += ("gpu_memory_fraction", "load_format", "dummy_seed", "dummy_routing")
    names += ("revision", "trust_remote_code", "plugins")
    return {name: getattr(args, name) for name in names}


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of SamplingParams but n; what is not given is as the model's generation config says."""
    group = parser.add_argument_group("sampling (defaults from the model's generation config)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens to generate at most (default 256)")
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="no end before so many tokens")
    group.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens; 0 for all")
    group.add_argument("--top-p", type=float, metavar="P", help="only the likeliest tokens that together reach P")
    group.add_argument("--min-p", type=float, metavar="P", help="only tokens with P times the likeliest's probability")
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1 makes what stands there less likely"
    )
    group.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="once per token of the answer")
    group.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="per occurrence in the answer")
    group.add_argument("--logit-bias", action="append", default=[], metavar="ID=X", help="may be repeated")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed and prompt give the same tokens")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the answer; may be repeated")
    group.add_argument("--stop-token-id", type=int, action="append", default=[], metavar="ID", help="may be repeated")
    group.add_argument("--include-stop-str", action="store_true", help="keep the stop string in the text")
    group.add_argument("--ignore-eos", action="store_true", help="the model's end tokens do not end the answer")
    group.add_argument("--show-special-tokens", action="store_true", help="keep special tokens in the text")


def sampling_params(args: argparse.Namespace, **more: Any) -> SamplingParams:
    """SamplingParams from the flags. Raises ValueError."""
    return SamplingParams(
        max_tokens=args.max_tokens,
        min_tokens=args.min_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=dict(map(_parse_bias, args.logit_bias)) or None,
        seed=args.seed,
        stop=args.stop,
        stop_token_ids=args.stop_token_id,
        include_stop_str=args.include_stop_str,
        ignore_eos=args.ignore_eos,
        skip_special_tokens=not args.show_special_tokens,
        **more,
    )


def _parse_bias(text: str) -> tuple[int, float]:
    token_id, separator, bias = text.partition("=")
    try:
        if not separator:
            raise ValueError
        number = float(bias)
        if math.isnan(number):
            raise ValueError
        return int(token_id), number
    except ValueError:
        raise ValueError(f"[sampling] --logit-bias: expected ID=NUMBER, found {text!r}") from None
