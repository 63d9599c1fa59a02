"""Tiny random checkpoints of any causal language model of transformers, for tests: weights, config and tokenizer.

make_tiny("NAME", "out/", seed=0)                  a save_pretrained folder
make_tiny("NAME+VARIANT", "out/", dtype="bfloat16", max_shard_size="50KB")
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autodeploy.capture import hooks

from .auto_class import auto_class
from .tiny_config import tiny_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")

# What the tokenizer learns its merges from. Any text can be encoded: its alphabet is all bytes.
_TEXT = (
    "the quick brown fox jumps over the lazy dog and the dog sleeps in the sun",
    "a cache of pages holds the keys and the values of every token of a sequence",
    "one two three four five six seven eight nine ten, and then there were more",
    "The answer to the question is that there is no answer to this question.",
)


def tiny_model(
    model_type: str,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    attention: str = "eager",
    rules: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A float32 model on the CPU in evaluation mode, with seeded weights that are large enough to tell errors.

    rules: of `tiny_config`, instead of those of the data file.
    """
    hooks.install()
    config = tiny_config(model_type, overrides, rules)
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config, dtype=torch.float32, attn_implementation=attention)
    enlarge_weights(model, seed)
    return model.eval()


def enlarge_weights(model: torch.nn.Module, seed: int) -> None:
    """Adds normal numbers to every parameter: usual initial weights are small, which hides errors and makes ties."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.dtype.is_floating_point:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.dtype) * (0.15 if parameter.dim() >= 2 else 0.1))


def make_tiny(
    model_type: str,
    out_dir: str | os.PathLike[str],
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    dtype: str = "float32",
    max_shard_size: str | int = "1GB",
    rules: dict[str, Any] | None = None,
    tokenizer: bool = True,
) -> Path:
    """Writes a checkpoint folder: safetensors (sharded above `max_shard_size`), configs, and a byte-level tokenizer.

    rules: as in `tiny_model`. tokenizer: False leaves it out.
    dtype: "float32", "bfloat16" or "float16", of the weights in the file and of the configuration.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"[tiny] expected float32, bfloat16 or float16, found {dtype}")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    model = tiny_model(model_type, seed, overrides, rules=rules)
    model.config.use_cache = True
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id, generation.bos_token_id, generation.pad_token_id = 2, 1, 0
    model = model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(out, max_shard_size=max_shard_size)
    if tokenizer:
        head = model.get_output_embeddings()  # may have fewer rows than there are embeddings
        rows = head.weight.shape[0] if head is not None else 320
        tiny_tokenizer(min(model.config.get_text_config().vocab_size, rows, 320)).save_pretrained(out)
    return out


def tiny_tokenizer(vocab_size: int) -> Any:
    """A byte-level tokenizer of at most `vocab_size` tokens that encodes any text, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast
