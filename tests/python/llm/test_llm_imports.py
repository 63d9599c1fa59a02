"""Serving needs neither torch nor transformers, nor the compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from llm_fakes import CHAT_TEMPLATE, byte_level_tokenizer, write_fake_artifact

SCRIPT = """
import sys
BLOCKED = {"torch", "transformers", "safetensors", "gguf", "accelerate", "numpy", "huggingface_hub"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED or name.startswith("autodeploy.") and name.split(".")[1] in (
                "capture", "transforms", "lowering", "ir", "ops", "weights", "compile"):
            raise ImportError(name + " was imported while serving")

sys.meta_path.insert(0, Block())
from llm_fakes import FakeEngine, scripted
from autodeploy import LLM, SamplingParams

tokens = [65, 66]
with LLM(sys.argv[1], engine_factory=lambda *_: FakeEngine(scripted(tokens))) as llm:
    assert len(llm.generate(["hello", "x"], SamplingParams(max_tokens=3))) == 2
    assert llm.chat([{"role": "user", "content": "hi"}], SamplingParams(max_tokens=3))[0].finished
print(sorted(m for m in sys.modules if m.split(".")[0] in BLOCKED))
"""


def test_serving_imports_neither_torch_nor_transformers(tmp_path):
    folder = write_fake_artifact(tmp_path, byte_level_tokenizer(), {}, CHAT_TEMPLATE)
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r})\n" + SCRIPT
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_package_itself_imports_nothing():
    heavy = ("autodeploy.", "tokenizers", "jinja2")
    script = f"import sys, autodeploy; print([m for m in sys.modules if m.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
