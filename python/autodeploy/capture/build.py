"""A model without weights: parameters that are only shapes, buffers that are real."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from .errors import CaptureError
from .hook_state import IMPLEMENTATION

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How a model class is found. `model_class`: instead of the auto class; remote code only where it was asked for.

    `written_out`: attention as the model's own code has it, not through transformers' interface.
    """

    model_class: type[PreTrainedModel] | None = None
    trust_remote_code: bool = False
    code_revision: str | None = None
    written_out: bool = False


def check_config(config: PretrainedConfig) -> None:
    """Refuses what is no causal language model of plain tensors.

    Raises:
        CaptureError: encoder-decoder, or weights that are stored quantized in a framework's own format.
    """
    name = type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise CaptureError(f"[capture] expected a decoder-only language model, found {name}, an encoder-decoder")
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CaptureError(
            f"[capture] expected float32, float16 or bfloat16 weights, found quantization_config ({method}); convert "
            "the checkpoint to bfloat16, or use a GGUF file"
        )


def build(config: PretrainedConfig, options: BuildOptions, dtype: torch.dtype) -> PreTrainedModel:
    """The model in evaluation mode: parameters on meta in `dtype`, real buffers, hooks as implementations.

    A model whose attention is written out in its own code (it does not ask transformers' attention interface) is built
    with the implementation that transformers would choose, "sdpa" where it has it or else "eager": the mask is the
    opaque node there, too.
    """
    check_config(config)
    config = copy.deepcopy(config)
    model = None
    try:
        model = None if options.written_out else _instantiate(config, options, dtype, IMPLEMENTATION)
    except (KeyError, ValueError) as e:
        if isinstance(e, CaptureError) or not _is_about_implementation(e):
            raise
    if model is None or not asks_attention_interface(model):
        try:
            model = _instantiate(config, options, dtype, "sdpa")
        except (ImportError, KeyError, ValueError) as e:
            if isinstance(e, CaptureError):
                raise
            model = _instantiate(config, options, dtype, "eager")
    model.eval()
    model.requires_grad_(False)
    return model


class _LargeOnMeta(TorchFunctionMode):
    """Large uninitialised tensors are made on meta at once: they are parameters, and need no memory of their own.

    (accelerate moves a parameter to meta when it is registered, after it was allocated.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            sizes = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
            if all(isinstance(n, int) for n in sizes) and math.prod(sizes) > 1 << 24:
                kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _is_about_implementation(error: Exception) -> bool:
    return IMPLEMENTATION in str(error) or "attn_implementation" in str(error)


def _instantiate(
    config: PretrainedConfig, options: BuildOptions, dtype: torch.dtype, attention: str
) -> PreTrainedModel:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.use_cache = False
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    with init_empty_weights(include_buffers=False), _LargeOnMeta():
        model_class = options.model_class or named_class(config)
        if model_class is not None:
            model = model_class._from_config(config, **arguments)
        else:
            if options.code_revision is not None:
                arguments["code_revision"] = options.code_revision
            try:
                model = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=options.trust_remote_code, **arguments
                )
            except ValueError as e:
                raise _refusal(config, options, e) from e
    model.tie_weights()
    _use_experts_hook(model)
    return model


def named_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class of the library that a checkpoint names for a configuration which the auto class does not know.

    None where the auto class knows it, where nothing is named, or what is named makes no text.
    """
    import transformers

    if type(config) in transformers.AutoModelForCausalLM._model_mapping or getattr(config, "auto_map", None):
        return None
    named = (getattr(config, "architectures", None) or [""])[0]
    found = getattr(transformers, named, None) if named.isidentifier() else None
    fits = isinstance(found, type) and getattr(found, "config_class", None) is type(config)
    return found if fits and found.can_generate() else None


def _refusal(config: PretrainedConfig, options: BuildOptions, error: ValueError) -> ValueError:
    if "Unrecognized configuration class" in str(error):
        return CaptureError(f"[capture] expected a config of a causal language model, found {type(config).__name__}")
    if "trust_remote_code" in str(error) and not options.trust_remote_code:
        return CaptureError(
            "[capture] expected a model of the transformers library, found one whose code comes with the checkpoint; "
            "allow it explicitly (trust_remote_code) if you trust its author"
        )
    return error


def _use_experts_hook(model: PreTrainedModel) -> None:
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = IMPLEMENTATION


def model_files(model: torch.nn.Module) -> frozenset[str]:
    """Files of the classes that the model is made of, but not of libraries (PyTorch, transformers' utilities)."""
    files = set()
    for name in {base.__module__ for m in model.modules() for base in type(m).__mro__}:
        path = getattr(sys.modules.get(name), "__file__", None)
        package = name.split(".")[0]
        library = package in ("torch", "builtins") or (package == "transformers" and name.split(".")[1] != "models")
        if path and not library:
            files.add(path)
    return frozenset(files)


def asks_attention_interface(model: torch.nn.Module) -> bool:
    """Whether attention in this model goes through transformers' attention interface, or there is none at all."""
    attentions = {type(m) for m in model.modules() if "attention" in type(m).__name__.lower()}
    if not attentions:
        return True
    sources = {inspect.getsource(sys.modules[cls.__module__]) for cls in attentions if cls.__module__ in sys.modules}
    return any("ALL_ATTENTION_FUNCTIONS" in text for text in sources)


def _float32_names(model: PreTrainedModel) -> re.Pattern[str] | None:
    """Parameters that transformers keeps in float32 whatever the model's dtype."""
    parts = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return re.compile("|".join(rf"(?:^|\.){part}(?:\.|$)" for part in parts)) if parts else None


def fake_parameters(model: PreTrainedModel) -> None:
    """Replaces every parameter by a fake one on the CPU, beside which the real buffers can be used in one graph.

    Parameters that share storage keep sharing it.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    wide = _float32_names(model)
    made: dict[int, torch.nn.Parameter] = {}
    keep = []  # the originals live until all ids were seen
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is None or isinstance(parameter.data, FakeTensor) or isinstance(parameter, FakeTensor):
                continue
            if id(parameter) not in made:
                data = parameter.detach()
                if wide is not None and wide.search(f"{prefix}.{name}"):
                    data = data.float()
                fake = FakeTensor(mode, data, torch.device("cpu"))
                made[id(parameter)] = torch.nn.Parameter(fake, requires_grad=False)
                keep.append(parameter)
            module._parameters[name] = made[id(parameter)]
