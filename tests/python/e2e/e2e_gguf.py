"""Writes a tiny checkpoint as a GGUF file of quantized weights, and as its dequantized twin in safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file


def _rows_of_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order in which GGUF keeps rotated rows: pairs (2i, 2i + 1) where transformers has (i, i + half)."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(checkpoint: Path, out: Path, types: Sequence[str], pairs: Sequence[str] = ()) -> Path:
    """Writes `out`/model.gguf from a safetensors checkpoint, and `out`/twin with what its blocks stand for.

    Args:
        checkpoint: a folder with one file of float32 weights; its architecture is one that the gguf package names.
        types: quantization types that matrices take in turn; vectors stay float32.
        pairs: suffixes of the matrices whose rows GGUF reorders for its rotation.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    kind = config["model_type"]
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.gguf"
    writer = gguf.GGUFWriter(str(path), kind)
    _metadata(writer, config)
    _tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text()), config["vocab_size"])

    twin: dict[str, np.ndarray] = {}
    weights = load_file(checkpoint / "model.safetensors")
    for count, (name, weight) in enumerate(sorted(weights.items())):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ValueError(f"the gguf package has no name for {name} of {kind}")
        weight = weight.astype(np.float32)
        if weight.ndim < 2:
            writer.add_tensor(stored, weight)
            twin[name] = weight
            continue
        quant = gguf.GGMLQuantizationType[types[count % len(types)]]
        heads = _heads(config, name) if name.endswith(tuple(pairs)) else 0
        ordered = _rows_of_pairs(weight, heads) if heads else weight
        blocks = gguf.quants.quantize(np.ascontiguousarray(ordered), quant)
        writer.add_tensor(stored, blocks, raw_dtype=quant)
        values = gguf.quants.dequantize(blocks, quant).astype(np.float32)
        twin[name] = np.ascontiguousarray(_rows_back(values, heads) if heads else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    shutil.copytree(checkpoint, out / "twin", dirs_exist_ok=True)
    save_file(twin, out / "twin" / "model.safetensors", metadata={"format": "pt"})
    return path


def _rows_back(weight: np.ndarray, heads: int) -> np.ndarray:
    shape = weight.shape
    return weight.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _heads(config: dict, name: str) -> int:
    return config["num_key_value_heads"] if ".k_proj" in name else config["num_attention_heads"]


def _metadata(writer: gguf.GGUFWriter, config: dict) -> None:
    rope = config.get("rope_parameters") or config
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, vocab_size: int) -> None:
    """A byte-level BPE tokenizer as GGUF keeps it."""
    model = tokenizer["model"]
    tokens = {i: t for t, i in model["vocab"].items()}
    special = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    listed = [special.get(i) or tokens.get(i) or f"[unused{i}]" for i in range(vocab_size)]
    kinds = [
        gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL if i in tokens else gguf.TokenType.UNUSED
        for i in range(vocab_size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(listed)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
