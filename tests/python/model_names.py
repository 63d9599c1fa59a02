"""Finds names of model architectures in source files: in identifiers and string literals, word by word."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".py", ".pyi", ".cc", ".h", ".hpp", ".inc", ".cu", ".cuh", ".json", ".toml")


@dataclass(frozen=True)
class Finding:
    """A name in a file: `text` is the identifier or literal that holds it."""

    path: Path
    line: int
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name!r} in {self.text[:80]!r}"


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of an identifier or a text: `GemmaMLPBlock2_x` is gemma, mlp, block2, x."""
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+", text)
    return tuple(p.lower() for p in parts)


def spellings(name: str) -> set[tuple[str, ...]]:
    """A name as words, and in one piece."""
    split = words(name)
    return {split, ("".join(split),)}


def family(name: str) -> str | None:
    """What stands before the version in a name's first word: `xyz` of `xyz3_moe`; None where there is no version."""
    found = re.match(r"([a-z]{3,})\d", words(name)[0])
    return found[1] if found else None


class Search:
    """Looks for names in source files.

    `allowed` are names that are also ordinary words, as words separated by spaces; `literals` are whole string literals
    or identifiers that may hold a name.
    """

    def __init__(self, names: Iterable[str], allowed: Iterable[str] = (), literals: Iterable[str] = ()) -> None:
        self._literals = frozenset(literals)
        skipped = {tuple(a.split()) for a in allowed}
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        for name in sorted({s for n in names for s in spellings(n)} - skipped):
            if len("".join(name)) > 1:
                self._by_first.setdefault(name[0], []).append(name)

    def in_text(self, text: str) -> str | None:
        """The first name in an identifier or a literal, or None."""
        if text.strip("\"'") in self._literals:
            return None
        found = words(text)
        for i, word in enumerate(found):
            for name in self._by_first.get(word, ()):
                if found[i : i + len(name)] == name:
                    return " ".join(name)
        return None

    def in_file(self, path: Path) -> Iterator[Finding]:
        """Every identifier or literal of a file that holds a name."""
        source = path.read_text(encoding="utf-8")
        pieces = _python(source) if path.suffix in (".py", ".pyi") else _c_like(source)
        for line, text in pieces:
            name = self.in_text(text)
            if name is not None:
                yield Finding(path, line, name, text)

    def in_tree(self, root: Path) -> list[Finding]:
        """Findings in all source files below a folder."""
        files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        return [finding for path in files for finding in self.in_file(path)]


def _python(source: str) -> Iterator[tuple[int, str]]:
    docstrings = {
        (node.value.lineno, node.value.col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    inside = False  # of an implicit concatenation that is a docstring
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING:
            inside = inside or token.start in docstrings
            if not inside:
                yield token.start[0], token.string
        elif token.type == tokenize.NAME or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            inside = False
            yield token.start[0], token.string
        elif token.type in (tokenize.OP, tokenize.NEWLINE):
            inside = False


_C_TOKENS = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)"""
    r"""|(?P<raw>R"(?P<mark>[^(]*)\(.*?\)(?P=mark)")"""
    r"""|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"""|(?P<name>[A-Za-z_]\w*)""",
    re.DOTALL,
)


def _c_like(source: str) -> Iterator[tuple[int, str]]:
    for match in _C_TOKENS.finditer(source):
        if match["comment"] is None:
            yield source.count("\n", 0, match.start()) + 1, match[0]
