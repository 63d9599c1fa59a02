"""`autodeploy generate`: complete prompts; one prompt streams."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .options import add_engine_arguments, add_model_arguments, add_sampling_arguments, engine_options, sampling_params

_MAX_PROMPT_BYTES = 64 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="may be repeated; '-' reads stdin"
    )
    parser.add_argument("--prompt-file", action="append", default=[], metavar="FILE", help="a prompt per file")
    parser.add_argument("--prompt-ids", action="append", default=[], metavar="1,2,3", help="a prompt as token ids")
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message: apply the chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message (with --chat)")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="completions per prompt")
    parser.add_argument("--logprobs", type=int, metavar="N", help="report log probabilities (with --json)")
    parser.add_argument("--json", action="store_true", help="print a JSON object per prompt")
    parser.add_argument("--stats", action="store_true", help="print times and rates to stderr")
    add_sampling_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    params = sampling_params(args, n=args.n, logprobs=args.logprobs)
    if args.system is not None and not args.chat:
        raise ValueError("--system goes with --chat")
    prompts = read_prompts(args)
    from autodeploy.llm import LLM

    with LLM(args.model, **engine_options(args)) as llm:
        if args.chat:
            if args.prompt_ids:
                raise ValueError("--chat takes text, not --prompt-ids")
            system = [] if args.system is None else [{"role": "system", "content": args.system}]
            chats = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
        if len(prompts) == 1 and args.n == 1 and not args.json:
            outputs = llm.chat_stream(chats[0], params) if args.chat else llm.stream(prompts[0], params)
            for output in outputs:
                sys.stdout.write(_delta(output.outputs[0], llm.tokenizer is not None))
                sys.stdout.flush()
            sys.stdout.write("\n")
            results = [output]
        else:
            results = llm.chat(chats, params) if args.chat else llm.generate(prompts, params)
            for place, output in enumerate(results):
                _print_result(place, output, args, llm.tokenizer is not None)
    if args.stats:
        for output in results:
            print(_stats_line(output), file=sys.stderr)
    return 0


def read_prompts(args: argparse.Namespace) -> list[Any]:
    """Prompts from the flags, or from stdin where there are none. Raises ValueError."""
    prompts: list[Any] = [_read_stdin() if prompt == "-" else prompt for prompt in args.prompt]
    for name in args.prompt_file:
        path = Path(name)
        try:
            if path.stat().st_size > _MAX_PROMPT_BYTES:
                raise ValueError(f"[prompt] {path} is larger than {_MAX_PROMPT_BYTES >> 20} MiB")
            prompts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"[prompt] {path}: expected text in UTF-8") from None
    for text in args.prompt_ids:
        try:
            prompts.append([int(part) for part in text.split(",")])
        except ValueError:
            raise ValueError(f"[prompt] --prompt-ids: expected numbers such as 1,2,3, found {text!r}") from None
    if not prompts:
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError("[prompt] give --prompt TEXT, or write the prompt to stdin")
        prompts.append(_read_stdin())
    return prompts


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise ValueError(f"[prompt] stdin holds more than {_MAX_PROMPT_BYTES >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("[prompt] stdin: expected text in UTF-8") from None


def _delta(completion: Any, has_text: bool) -> str:
    """What is new of a stream; token ids where the model has no tokenizer."""
    return completion.delta if has_text else "".join(f"{token_id} " for token_id in completion.delta_token_ids)


def _print_result(place: int, output: Any, args: argparse.Namespace, has_text: bool) -> None:
    if args.json:
        print(json.dumps(_as_json(output), ensure_ascii=False))
        return
    for completion in output.outputs:
        label = f"{place + 1}" if args.n == 1 else f"{place + 1}.{completion.index + 1}"
        text = completion.text if has_text else " ".join(map(str, completion.token_ids))
        print(f"--- {label} ({completion.finish_reason})\n{text}")


def _as_json(output: Any) -> dict[str, Any]:
    completions = []
    for completion in output.outputs:
        entry = {
            "index": completion.index,
            "text": completion.text,
            "token_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if completion.logprobs is not None:
            entry["logprobs"] = [
                [
                    {"token_id": i, "token": found.token, "logprob": found.logprob, "rank": found.rank}
                    for i, found in place.items()
                ]
                for place in completion.logprobs
            ]
        completions.append(entry)
    metrics = output.metrics
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "outputs": completions,
        "metrics": {
            "time_to_first_token_s": metrics.time_to_first_token,
            "decode_tokens_per_s": metrics.decode_tokens_per_second,
        },
    }


def _stats_line(output: Any) -> str:
    metrics = output.metrics
    parts = [f"{metrics.num_prompt_tokens} prompt tokens", f"{metrics.num_generated_tokens} generated"]
    if metrics.time_to_first_token is not None:
        parts.append(f"first token after {1000 * metrics.time_to_first_token:.0f} ms")
    if metrics.decode_tokens_per_second is not None:
        parts.append(f"then {metrics.decode_tokens_per_second:.1f} tokens/s")
    return ", ".join(parts)
