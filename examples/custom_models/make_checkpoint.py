"""Writes a tiny checkpoint with random weights of one of the example models.

    python make_checkpoint.py dense out/dense
    autodeploy verify out/dense --trust-remote-code
    autodeploy generate out/dense --trust-remote-code --prompt "the quick brown fox"

The folder is an ordinary one: config.json whose auto_map names the classes, the Python files, model.safetensors and a
tokenizer. `--set NAME=VALUE` changes a field of the configuration.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CLASSES = {
    "dense": ("DenseConfig", "DenseForCausalLM"),
    "hybrid": ("HybridConfig", "HybridForCausalLM"),
    "gated_norm": ("GatedNormConfig", "GatedNormForCausalLM"),
    "own_kernel": ("OwnKernelConfig", "OwnKernelForCausalLM"),
}


def make_checkpoint(name: str, out: Path, fields: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """The folder `out` with a random checkpoint of example `name`; `fields` go into its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from autodeploy.testing.tiny import enlarge_weights, tiny_tokenizer

    out.mkdir(parents=True, exist_ok=True)
    for path in (HERE / name).glob("*.py"):
        shutil.copy(path, out / path.name)
    configuration, model_class = CLASSES[name]
    auto_map = {
        "AutoConfig": f"configuration_{name}.{configuration}",
        "AutoModelForCausalLM": f"modeling_{name}.{model_class}",
    }
    facts = {"model_type": f"example_{name}", "architectures": [model_class], "auto_map": auto_map, "dtype": "float32"}
    (out / "config.json").write_text(json.dumps(facts | (fields or {}), indent=2))
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float32)
    enlarge_weights(model, seed)
    model.generation_config.eos_token_id, model.generation_config.bos_token_id = 2, 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(out)
    tiny_tokenizer(config.vocab_size).save_pretrained(out)
    # The library writes its own idea of where the code is; the checkpoint keeps what it came with.
    written = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(written | facts, indent=2))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CLASSES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    fields = {name: json.loads(value) for name, value in (each.split("=", 1) for each in args.set)}
    print(make_checkpoint(args.name, args.out, fields, args.seed))


if __name__ == "__main__":
    main()
