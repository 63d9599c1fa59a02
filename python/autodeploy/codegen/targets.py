"""What kernels are compiled for: `cuda:90` is the architecture sm_90, with PTX of an older one for every other GPU."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FALLBACK_ARCH = 80
"""PTX of this architecture is compiled along: a driver makes code of it for any later GPU."""
ACTS = ("bfloat16", "float16", "float32")
DEFAULT_ACTS = ("bfloat16", "float32")
"""Models are served in bfloat16; float32 is what numbers are compared in."""
ARCHS = (80, 86, 87, 89, 90, 100, 103, 120, 121)

_TARGET = re.compile(r"cuda:([1-9]\d{1,2})")


@dataclass(frozen=True)
class Targets:
    """Architectures that get code of their own (none: no kernels at all), and activation types."""

    archs: tuple[int, ...] = ()
    acts: tuple[str, ...] = DEFAULT_ACTS

    @property
    def names(self) -> dict[int, tuple[str, ...]]:
        """Per architecture to compile for, what is kept of it: names as kernels.json has them."""
        names = {arch: (f"sm_{arch}",) for arch in self.archs}
        if names:
            names[FALLBACK_ARCH] = (*names.get(FALLBACK_ARCH, ()), f"compute_{FALLBACK_ARCH}")
        return names


NO_TARGETS = Targets()


def parse_targets(targets: str | Iterable[str], acts: str | Iterable[str] = DEFAULT_ACTS) -> Targets:
    """Targets of texts such as "cpu" or "cuda:90,cuda:80", and "bfloat16,float32". Raises ValueError."""
    archs = []
    for text in _split(targets):
        match = _TARGET.fullmatch(text)
        if text != "cpu" and (match is None or int(match[1]) not in ARCHS):
            known = ", ".join(f"cuda:{a}" for a in ARCHS)
            raise ValueError(f"[target] expected cpu, or any of {known}, found {text!r}")
        if match is not None:
            archs.append(int(match[1]))
    chosen = _split(acts)
    for act in chosen:
        if act not in ACTS:
            raise ValueError(f"[target] expected activation types of {', '.join(ACTS)}, found {act!r}")
    if archs and not chosen:
        raise ValueError(f"[target] expected at least one activation type of {', '.join(ACTS)}, found none")
    return Targets(tuple(dict.fromkeys(archs)), tuple(dict.fromkeys(chosen)))


def targets_of_device(arch: int, acts: str | Iterable[str]) -> Targets:
    """Targets for a GPU of this architecture: code of its own where that can be made, else PTX alone."""
    return parse_targets([f"cuda:{arch if arch in ARCHS else FALLBACK_ARCH}"], acts)


def _split(texts: str | Iterable[str]) -> list[str]:
    parts = texts.split(",") if isinstance(texts, str) else list(texts)
    return [p.strip() for p in parts if p.strip()]
