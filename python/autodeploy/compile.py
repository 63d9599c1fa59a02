"""The compiler in one page: capture, transform, lower, link weights, write.

    python -m autodeploy.compile MODEL -o DIR

MODEL is a checkpoint folder, a .gguf file, an alias or a hub id. This process becomes the compiler's own: capture hooks
transformers before any modelling module is imported. No weight is read but for `pack`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import Program, Provenance, validate
from .artifact.files import CONSTANTS, GENERATION_CONFIG, PACKED_WEIGHTS
from .artifact.writer import Content, write_artifact
from .capture.source import Source, resolve_source
from .codegen.generate import generate
from .codegen.targets import NO_TARGETS, Targets
from .codegen.triton_compile import require_triton

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from .ir import ModelIR, ParamInfo
    from .transforms import Report as Steps
    from .weights.weight_program import WeightProgram

Report = Callable[[str], None]

_FORMATS = {"act": "f32", "f32": "f32", "i64": "i64", "bool": "bool"}
_VERSIONS = ("autodeploy", "torch", "transformers")


@dataclass(frozen=True)
class Compiled:
    """A model on its way out of the compiler, before anything is written.

    `explain` says which way every block went (transforms/explain.py), `notes` what else was decided, `steps` what each
    transform did. `constants` is the content of constants.bin.
    """

    source: Source
    program: Program
    weights: WeightProgram
    constants: bytes
    explain: list[dict[str, Any]]
    notes: list[str]
    steps: Steps


def compile_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    revision: str | None = None,
    pack: bool = False,
    dump: str | None = None,
    trust_remote_code: bool = False,
    plugins: Sequence[str] = (),
    load_format: str = "auto",
    targets: Targets = NO_TARGETS,
    kernel_cache: Path | None = None,
    report: Report = lambda text: None,
) -> Compiled:
    """Compiles a model into the artifact folder `out`, which is written whole or not at all.

    Args:
        source: a checkpoint folder, a .gguf file, an alias or a hub id.
        out: the folder; an artifact that stands there is replaced.
        revision: of a hub id.
        pack: put the evaluated weights into the artifact, which then needs its checkpoint no more.
        dump: a folder for the graph's text after each transform.
        trust_remote_code: run modelling code that comes with the checkpoint.
        plugins: libraries with kernels for the author's own operators: the artifact holds their digests, and the
            runtime then refuses other ones of the same names. Nothing of them is loaded here.
        load_format: "dummy" compiles a folder from its configuration alone. Its weights need not be there and are not
            looked at; the artifact has none, and is served with made-up ones (load_format="dummy") only.
        targets: GPUs and activation types to compile kernels for, which needs Triton (but no GPU).
        kernel_cache: a folder that keeps compiled kernels for the next time.
        report: called with lines of progress.

    Raises:
        ValueError: the model cannot be compiled or the artifact cannot be written; the message says what to do.
    """
    check_load_format(load_format)
    if pack and load_format == "dummy":
        raise ValueError("[compile] --pack puts weights into the artifact, and load_format dummy leaves them out")
    if targets.archs:
        require_triton()
    found = resolve_source(
        source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        weights=load_format == "auto",
        report=report,
    )
    compiled = build(found, dump=dump, load_format=load_format, report=report)
    if plugins:
        compiled.program.metadata["plugins"] = {Path(p).name: _digest(Path(p)) for p in plugins}
    write(compiled, out, pack=pack, targets=targets, kernel_cache=kernel_cache, report=report)
    return compiled


def build(
    source: Source, *, dump: str | None = None, load_format: str = "auto", report: Report = lambda text: None
) -> Compiled:
    """Everything but writing: the Program and the weight program of a model. Raises ValueError."""
    from .capture.capture import capture
    from .lowering.lower import lower
    from .transforms import run_pipeline
    from .weights.absent import derive_absent
    from .weights.checkpoint import Checkpoint
    from .weights.derive import Derivation, derive
    from .weights.link import link
    from .weights.unused import describe

    if source.kind == "artifact":
        raise ValueError(f"[compile] expected a model, found the artifact {source.path}: it is compiled already")
    derivations: list[tuple[Derivation, Checkpoint]] = []
    config, said = source.config, list[str]()
    absent = load_format == "dummy" and source.kind == "folder"  # a .gguf file is configuration and weights in one
    if absent:
        config = _without_quantization(config, said)

    def on_model(model: PreTrainedModel) -> None:
        if absent:
            derivations.append(derive_absent(model, _weight_format(source.config), source.path))
        else:
            report("reading the headers of the checkpoint")
            derivations.append((derive(model, source.checkpoint), source.checkpoint))
        report("capturing the model")

    report("building the model without its weights")
    ir = capture(config, trust_remote_code=source.trust_remote_code, on_model=on_model)
    report("transforming the graph")
    steps = run_pipeline(ir, dump)
    explain = ir.metadata.pop("explain")
    report("lowering to a program")
    program = lower(ir)
    validate(program)
    wanted = {p.name: p for p in _wanted(ir)}
    constants = {key: (_FORMATS[c.dtype], c.value.contiguous().numpy()) for key, c in ir.constants.items()}
    weights, content = link([wanted[p.name] for p in program.params], constants, *derivations[0])
    if absent:
        weights.notes.append("compiled from the configuration alone: weights are made up when they are loaded")
    notes = said + list(ir.report) + ([describe(weights.unused)] if weights.unused else [])
    return Compiled(source, program, weights, content, explain, notes, steps)


def _without_quantization(config: PretrainedConfig, said: list[str]) -> PretrainedConfig:
    """The configuration of the same model with weights of a plain type, and a note where that makes a difference."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return config
    config = copy.deepcopy(config)
    del config.quantization_config
    method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
    said.append(f"[compile] quantization_config ({method}) is left out: made-up weights are {_weight_format(config)}")
    return config


def _weight_format(config: PretrainedConfig) -> str:
    """The format that a checkpoint of this configuration would have; bfloat16 where it does not say."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return {"float32": "f32", "float16": "f16"}.get(str(dtype).removeprefix("torch."), "bf16")


def check_load_format(load_format: str) -> None:
    """Raises ValueError for what is neither "auto" nor "dummy"."""
    if load_format not in ("auto", "dummy"):
        raise ValueError(f"[compile] load_format: expected auto or dummy, found {load_format!r}")


def _wanted(ir: ModelIR) -> Iterator[ParamInfo]:
    """What the loader has to make: parameters as transforms left them, and constants that an instruction reads."""
    from .ir import ParamInfo, Segment

    yield from ir.params.values()
    for key, constant in ir.constants.items():
        shape = tuple(constant.value.shape)
        segment = Segment(shape[0] if shape else 1, {"op": "constant", "name": key})
        yield ParamInfo(constant.name, shape, constant.dtype, [segment], ())


def write(
    compiled: Compiled,
    out: str | os.PathLike[str],
    *,
    pack: bool = False,
    targets: Targets = NO_TARGETS,
    kernel_cache: Path | None = None,
    report: Report = lambda text: None,
) -> Path:
    """Writes the artifact. Raises ValueError, and then leaves nothing behind."""
    from .lowering.author_ops import author_schemas
    from .weights.pack import plan_pack, write_packed

    source, weights = compiled.source, compiled.weights
    report("writing the tokenizer")
    files: dict[str, Content] = {CONSTANTS: compiled.constants, **source.tokenizer_files()}
    files[GENERATION_CONFIG] = json.dumps(source.generation_config(), indent=2, sort_keys=True).encode() + b"\n"
    if pack:
        packed, header = plan_pack(weights)
        # The file of constants lies beside the packed one, which is written after it.
        show = _percent(report)
        files[PACKED_WEIGHTS] = lambda path: write_packed(weights, packed, header, path.parent, path, show)
    options: dict[str, Any] = {"pack": pack}
    if any(t.source is None for t in weights.tensors.values()):
        options["load_format"] = "dummy"
    made = None
    if targets.archs:
        options |= {"targets": [f"cuda:{arch}" for arch in targets.archs], "acts": list(targets.acts)}
        schemas = author_schemas(compiled.program)
        made = generate(compiled.program, targets, schemas=schemas, cache_folder=kernel_cache, report=report)
    provenance = Provenance(
        source=source.named,
        revision=source.revision,
        versions={name: _version(name) for name in _VERSIONS},
        remote_code=source.trust_remote_code,
        options=options,
    )
    report("writing the artifact")
    content = (packed if pack else weights).to_json()
    return write_artifact(
        out, compiled.program, content, provenance, files, made and made.kernels, made and made.binaries
    )


def _percent(report: Report) -> Callable[[int, int], None]:
    """Reports progress of packing once per percent."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown:
            shown = percent
            report(f"packing weights: {percent} %")

    return show


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"[compile] expected a shared library at {path}, found none: {error.strerror}") from None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def main(arguments: list[str] | None = None) -> int:
    """`python -m autodeploy.compile`: the smallest command that compiles."""
    parser = argparse.ArgumentParser(prog="python -m autodeploy.compile", description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--dump")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto")
    args = parser.parse_args(arguments)
    begin = time.monotonic()

    def report(text: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {text}", file=sys.stderr)

    try:
        compiled = compile_model(
            args.model,
            args.output,
            pack=args.pack,
            dump=args.dump,
            trust_remote_code=args.trust_remote_code,
            load_format=args.load_format,
            report=report,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    report(f"{len(compiled.program.instructions)} instructions in {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
