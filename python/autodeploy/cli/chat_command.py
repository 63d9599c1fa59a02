"""`autodeploy chat`: a conversation at the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from .options import add_engine_arguments, add_model_arguments, add_sampling_arguments, engine_options, sampling_params

if TYPE_CHECKING:
    from autodeploy.llm import LLM, SamplingParams

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_sampling_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    params = sampling_params(args)
    from autodeploy.llm import LLM

    with LLM(args.model, **engine_options(args)) as llm:
        llm.render_chat([{"role": "user", "content": "x"}])  # says at once where there is no template
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (line editing and history for input())
            print(_HELP)
        hold_conversation(llm, params, args.system)
    return 0


def hold_conversation(llm: LLM, params: SamplingParams, system: str | None) -> None:
    """Read lines and answer them until the input ends."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    messages = list(opening)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n" + _HELP)
            continue
        command = line.strip()
        if command in ("/exit", "/quit"):
            return
        if command == "/reset":
            messages = list(opening)
            print("(forgotten)")
        elif command.startswith("/"):
            print(_HELP)
        elif command:
            _answer(llm, params, messages, line)


def _answer(llm: LLM, params: SamplingParams, messages: list[dict[str, str]], line: str) -> None:
    """Stream an answer and add both turns to the conversation; a turn that the model cannot take is not kept."""
    messages.append({"role": "user", "content": line})
    text = ""
    try:
        for output in llm.chat_stream(messages, params):
            text = output.text
            sys.stdout.write(output.outputs[0].delta)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" (stopped)")
    except ValueError as error:
        messages.pop()
        print(f"{error}; /reset begins anew", file=sys.stderr)
        return
    sys.stdout.write("\n")
    messages.append({"role": "assistant", "content": text})
