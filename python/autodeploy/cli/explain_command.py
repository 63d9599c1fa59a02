"""`autodeploy explain`: how a model was compiled."""

from __future__ import annotations

import argparse

from .options import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    raise NotImplementedError
