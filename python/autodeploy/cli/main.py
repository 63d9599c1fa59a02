"""Entry point of the command line: finds the command, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a failure of ours, 2 a user's mistake, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import autodeploy
from autodeploy.llm import env
from autodeploy.llm.errors import CompileError

# Name of a command -> what it does; its module is `autodeploy.cli.<name>_command`.
COMMANDS = {
    "compile": "write an artifact from a checkpoint",
    "inspect": "show an artifact: program, states, weight program, memory plan",
    "generate": "complete prompts, streaming",
    "chat": "hold a conversation",
    "verify": "compare logits and greedy tokens with transformers; find the first wrong instruction",
    "conformance": "every causal LM of transformers as a tiny random model, compiled and compared",
    "explain": "which canonical op each block of a model became, and why",
    "bench": "measure, side by side with other engines",
    "doctor": "what this machine has, and whether everything is in place",
    "cache": "list or clear compiled artifacts",
}

EXIT_OURS, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only the module of the command that is asked for is imported."""
    parser = _Parser(prog="autodeploy", description="A Hugging Face causal LM in, an artifact and a fast runtime out.")
    parser.add_argument("--version", action="version", version=f"autodeploy {autodeploy.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == command:
            module = importlib.import_module(f"autodeploy.cli.{name}_command")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in arguments if not a.startswith("-")), None)
    debug = "--debug" in arguments
    try:
        parsed = build_parser(command).parse_args(arguments)
        if command != "doctor":  # which reports a bad variable among the rest
            env.check_environment()
            logging.basicConfig(level=env.LOG.get().upper(), format="%(name)s: %(message)s")
        return parsed.run(parsed)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OURS
    except Exception as error:
        if debug:
            traceback.print_exc()
            if isinstance(error, CompileError) and error.details:
                print(error.details, file=sys.stderr)
        print(f"autodeploy: {_one_line(error)}", file=sys.stderr)
        return exit_code_of(error)


def exit_code_of(error: Exception) -> int:
    """2 where the user can put it right (what was asked for, files, memory), 1 where it is ours."""
    return EXIT_USER if isinstance(error, ValueError | OSError | MemoryError) else EXIT_OURS


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) or exit_code_of(error) == EXIT_USER or text.startswith("["):
        return text
    return f"{type(error).__name__}: {text} (--debug shows more)"


if __name__ == "__main__":
    raise SystemExit(main())
