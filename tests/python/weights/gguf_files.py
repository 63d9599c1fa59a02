"""Writes GGUF files that transformers can read, for any architecture of its table, without a converter.

The metadata is transformers' own table read backwards. The shape of each tensor is the one that its processor turns
into the parameter's; the values are random, since what the file means is what transformers makes of it.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import gguf
import numpy as np

from autodeploy.weights.derive_gguf import process_of
from autodeploy.weights.learn_layout import learn

QUANTS = ["Q8_0", "Q4_0", "F16", "Q4_1", "Q5_0", "BF16", "Q5_1"]


def write_model(path: Path, model, arch: str, keys: dict[str, str], values: dict[str, object]) -> Path:
    """A file for `model` (on meta); matrices take the quantization types in turn where their rows are whole blocks.

    `keys` (metadata by field of the configuration) and `values` (metadata by value) are what transformers' table lacks.
    """
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in values.items():
        _add(writer, f"{arch}.{key}", value)
    _metadata(writer, model.config, arch, keys)
    rng = np.random.default_rng(0)
    # transformers' newer loader does not read the 5-bit types.
    kinds = itertools.cycle([q for q in QUANTS if not (_declarative(arch) and q.startswith("Q5"))])
    chosen: dict[str, str] = {}
    for name, shape in sorted(tensor_shapes(model, arch).items()):
        values = rng.normal(size=shape).astype(np.float32)
        if name.endswith("ssm_a"):
            values = -np.abs(values) - 0.1
        quantizable = len(shape) > 1 and shape[-1] % 32 == 0
        # The two halves of a joined matrix have one type, as quantizing tools give them.
        quant = chosen.setdefault(name.replace("_up", "_gate"), next(kinds)) if quantizable else "F32"
        kind = gguf.GGMLQuantizationType[quant]
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor_shapes(model, arch: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's tensors, by name."""
    from transformers import modeling_gguf_pytorch_utils as loader

    if _declarative(arch):
        return _declared_shapes(model, arch)
    processor = loader.TENSOR_PROCESSORS.get(arch, loader.TensorProcessor)(config=model.config.to_dict())
    names = loader.get_gguf_hf_weights_map(model, processor)
    state = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    shapes = {}
    for name, target in names.items():
        if target not in state or target in tied:
            continue
        # Experts are parameters without a suffix; the file's tensors have one.
        name = name + ".weight" if name.endswith("_exps") else name
        shapes[name] = _source_shape(process_of(processor, name, names), state[target], name)
    return shapes


def _source_shape(process, want: tuple[int, ...], name: str) -> tuple[int, ...]:
    half = (want[0], want[1] // 2, *want[2:]) if len(want) == 3 else want
    squeezed = tuple(d for d in want if d != 1)
    for shape in dict.fromkeys([half, want, want[::-1], squeezed]):
        try:
            pieces = learn(process, shape, name)
        except ValueError:
            continue
        probe = process(-np.ones(shape))
        if pieces and all(np.shape(a) == want for a in probe.values()):
            return shape
    raise AssertionError(f"no shape of {name} gives {want}")


def _declarative(arch: str) -> bool:
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    return is_gguf_arch_supported(arch)


def _declared_shapes(model, arch: str) -> dict[str, tuple[int, ...]]:
    """The gguf package's names of all tensors, with the shape of the parameter that each ends at."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

    mapping = get_gguf_conversion_mapping(arch, model.config)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    kind = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    state = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    shapes = {}
    for tensor in gguf.MODEL_TENSORS[kind]:
        for layer, suffix in itertools.product(range(model.config.num_hidden_layers), (".weight", ".bias", "")):
            name = gguf.TENSOR_NAMES[tensor].format(bid=layer) + suffix
            target, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, model.state_dict())
            if target in state and target not in tied:
                shapes[name] = tuple(d for d in state[target] if d != 1)
    return shapes


def _metadata(writer, config, arch: str, keys: dict[str, str]) -> None:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    table = next((GGUF_CONFIG_MAPPING[k] for k in (arch, config.model_type) if k in GGUF_CONFIG_MAPPING), {}) | keys
    for key, name in table.items():
        value = getattr(config, name, None) if name else None
        if name == "rope_theta":
            value = config.rope_parameters.get("rope_theta", 10000.0)
        if value is not None and not isinstance(value, (str, dict)):
            _add(writer, f"{arch}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(config.vocab_size)])


def _add(writer, key: str, value) -> None:
    if key in writer.kv_data[0]:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float) and math.isfinite(value):
        writer.add_float32(key, value)
    elif isinstance(value, (list, tuple)) and value:
        writer.add_array(key, list(value))
