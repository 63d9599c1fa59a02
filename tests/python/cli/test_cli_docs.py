"""The code of the user pages and the examples runs. In place of the real model they get a tiny one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tiny_workshop import ROOT, has_engine, make_checkpoint, run_python, run_shell

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_engine(), reason="the C++ engine was not built")]

PAGES = ("getting_started.md", "python_api.md", "sampling.md", "cli.md")
STAND_IN = re.compile(r"\bsmollm2\b(?!-)")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """(folder to run in, cache, the stand-in's checkpoint)"""
    folder = tmp_path_factory.mktemp("docs")
    return folder, folder / "cache", make_checkpoint(folder / "model")


def blocks(path: Path, language: str) -> str:
    """All code of a page in that language, in order."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page(page, workshop):
    folder, cache, model = workshop
    code = blocks(ROOT / "docs" / page, "python")
    if code:
        done = run_python(STAND_IN.sub(str(model), code), folder, cache)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_shell_of_a_page(page, workshop):
    folder, cache, model = workshop
    code = blocks(ROOT / "docs" / page, "sh")
    if code:
        done = run_shell(STAND_IN.sub(str(model), code), folder, cache)
        assert done.returncode == 0, done.stderr


def test_python_of_the_readme(workshop):
    folder, cache, model = workshop
    code = blocks(ROOT / "README.md", "python").replace("path/to/checkpoint", str(model))
    assert "LLM(" in code
    done = run_python(code, folder, cache)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("example", "words"),
    [("compile_and_generate.py", "The capital of France is"), ("streaming.py", "Why is the sky blue?")],
)
def test_examples_with_a_model(example, words, workshop):
    folder, cache, model = workshop
    done = run_python((ROOT / "examples" / example).read_text(), folder, cache, str(model))
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_the_example_that_inspects(workshop):
    folder, cache, model = workshop
    assert run_shell(f"autodeploy compile {model} -o to-inspect", folder, cache).returncode == 0
    done = run_python((ROOT / "examples" / "inspect_artifact.py").read_text(), folder, cache, "to-inspect")
    assert done.returncode == 0, done.stderr
    assert "attention" in done.stdout
    assert re.search(r"^\d+ numbers are kept", done.stdout, re.MULTILINE)
