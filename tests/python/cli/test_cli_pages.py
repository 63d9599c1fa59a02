"""The user pages name what is there, all of it."""

from __future__ import annotations

import dataclasses
import re

from autodeploy.cli.main import COMMANDS
from autodeploy.llm import LLM, CompletionOutput, RequestOutput, SamplingParams, env
from tiny_workshop import ROOT

DOCS = ROOT / "docs"


def test_every_variable_stands_in_the_pages():
    text = (DOCS / "cli.md").read_text()
    rows = set(re.findall(r"^\| `(AUTODEPLOY_\w+)` \|", text, re.MULTILINE))
    assert rows == {variable.name for variable in env.ENV_VARS}


def test_every_command_stands_in_the_pages():
    headings = re.findall(r"^## (.*)$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert set(COMMANDS) <= {name.strip() for heading in headings for name in heading.split(",")}


def test_every_field_stands_in_the_pages():
    sampling = (DOCS / "sampling.md").read_text()
    assert all(f"`{field.name}`" in sampling for field in dataclasses.fields(SamplingParams))
    api = (DOCS / "python_api.md").read_text()
    outputs = [*dataclasses.fields(RequestOutput), *dataclasses.fields(CompletionOutput)]
    assert all(f.name in api for f in outputs if f.name not in ("request_id", "index"))
    options = [name for name in LLM.__init__.__annotations__ if name not in ("model", "engine_factory", "return")]
    assert all(f"`{name}`" in api for name in options)


def test_links_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
