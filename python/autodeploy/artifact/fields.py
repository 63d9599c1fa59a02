"""Typed access to a JSON object, with messages that name the path of a wrong field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from .dims import MAX_INT, Dim, format_dim, parse_dim
from .errors import ArtifactError

_NON_FINITE = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
MAX_RANK = 8
_T = TypeVar("_T")


class Fields:
    """A JSON object under inspection. Each getter takes a field once; `finish` refuses fields that nobody asked for,
    unless the file's minor version is newer than ours (docs/program.md, growth rules)."""

    def __init__(self, data: object, path: str, lenient: bool = False) -> None:
        if not isinstance(data, dict):
            raise ArtifactError(f"[{path}] expected an object, found {_show(data)}")
        self.path = path
        self._data: dict[str, Any] = data
        self._seen: set[str] = set()
        self._lenient = lenient

    def version(self, format_name: str, ours: tuple[int, int]) -> tuple[int, int]:
        """Checks `format` and `version`: another major is refused, a newer minor makes unknown fields legal."""
        found = self.text("format")
        if found != format_name:
            raise ArtifactError(f'[{self.path}] expected the format "{format_name}", found "{found}"')
        v = Fields(self._take("version"), f"{self.path}.version", lenient=True)
        major, minor = v.integer("major"), v.integer("minor")
        if major != ours[0]:
            raise ArtifactError(
                f"[{self.path}] expected version {ours[0]}.x, found {major}.{minor}: compile the model again or use "
                "the autodeploy that wrote it"
            )
        self._lenient = minor > ours[1]
        return major, minor

    def finish(self) -> None:
        unknown = sorted(set(self._data) - self._seen)
        if unknown and not self._lenient:
            raise ArtifactError(f'[{self.path}] found an unknown field "{unknown[0]}"')

    def has(self, name: str) -> bool:
        return name in self._data

    def text(self, name: str) -> str:
        return self._expect(name, self._take(name), str, "a string")

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._expect(name, x, str, "a list of strings") for x in self._list(name))

    def integer(self, name: str, low: int = 0) -> int:
        return self._int(name, self._take(name), low)

    def ints(self, name: str, low: int = 0) -> tuple[int, ...]:
        return tuple(self._int(name, x, low) for x in self._list(name))

    def boolean(self, name: str) -> bool:
        return self._expect(name, self._take(name), bool, "true or false")

    def number(self, name: str) -> bool | int | float:
        return self._number(name, self._take(name))

    def dim(self, name: str) -> Dim:
        return self._dim(name, self._take(name))

    def dims(self, name: str) -> tuple[Dim, ...]:
        found = self._list(name)
        if len(found) > MAX_RANK:
            raise ArtifactError(f"[{self.path}.{name}] expected at most {MAX_RANK} dims, found {len(found)}")
        return tuple(self._dim(name, x) for x in found)

    def mapping(self, name: str) -> dict[str, Any]:
        return self._expect(name, self._take(name), dict, "an object")

    def values(self, name: str) -> list[Any]:
        """A list of anything, for the caller to check."""
        return self._list(name)

    def items(self, name: str) -> Iterator[Fields]:
        """The objects of a list; each is checked for unknown fields after its turn."""
        for i, x in enumerate(self._list(name)):
            f = Fields(x, f"{self.path}.{name}[{i}]", self._lenient)
            yield f
            f.finish()

    def optional_items(self, name: str) -> Iterator[Fields | None]:
        for i, x in enumerate(self._list(name)):
            if x is None:
                yield None
                continue
            f = Fields(x, f"{self.path}.{name}[{i}]", self._lenient)
            yield f
            f.finish()

    def child(self, name: str) -> Fields:
        return Fields(self._take(name), f"{self.path}.{name}", self._lenient)

    def index_map(self, name: str) -> dict[str, int]:
        return {k: self._int(f"{name}.{k}", v, 0) for k, v in self.mapping(name).items()}

    def pairs(self, name: str) -> list[tuple[int, int]]:
        out = []
        for x in self._list(name):
            if not isinstance(x, list) or len(x) != 2:
                raise ArtifactError(f"[{self.path}.{name}] expected pairs of integers, found {_show(x)}")
            out.append((self._int(name, x[0], 0), self._int(name, x[1], 0)))
        return out

    def attrs(self, name: str) -> dict[str, Any]:
        def one(key: str, x: object) -> Any:
            if isinstance(x, str):
                return x
            if isinstance(x, list):
                return [self._int(f"{name}.{key}", y, -MAX_INT) for y in x]
            return self._number(f"{name}.{key}", x)

        return {k: one(k, v) for k, v in self.mapping(name).items()}

    def _take(self, name: str) -> Any:
        self._seen.add(name)
        if name not in self._data:
            raise ArtifactError(f'[{self.path}] the field "{name}" is missing')
        return self._data[name]

    def _list(self, name: str) -> list[Any]:
        return self._expect(name, self._take(name), list, "a list")

    def _expect(self, name: str, x: object, kind: type[_T], words: str) -> _T:
        if not isinstance(x, kind):
            raise ArtifactError(f"[{self.path}.{name}] expected {words}, found {_show(x)}")
        return x

    def _int(self, name: str, x: object, low: int) -> int:
        if not isinstance(x, int) or isinstance(x, bool) or not low <= x <= MAX_INT:
            raise ArtifactError(f"[{self.path}.{name}] expected an integer from {low} to 2^53, found {_show(x)}")
        return x

    def _number(self, name: str, x: object) -> bool | int | float:
        if isinstance(x, dict) and set(x) == {"number"} and x["number"] in _NON_FINITE:
            return _NON_FINITE[x["number"]]
        if not isinstance(x, (bool, int, float)) or (isinstance(x, int) and abs(x) > MAX_INT):
            raise ArtifactError(f"[{self.path}.{name}] expected a number, found {_show(x)}")
        return x

    def _dim(self, name: str, x: Any) -> Dim:
        try:
            return format_dim(*parse_dim(x))
        except ArtifactError as e:
            raise ArtifactError(f"[{self.path}.{name}] {str(e).removeprefix('[dim] ')}") from None


def _show(x: object) -> str:
    text = repr(x)
    return text if len(text) <= 60 else text[:57] + "..."
