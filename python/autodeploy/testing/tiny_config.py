"""A tiny configuration of any causal language model of transformers, by rules on the names of configuration fields.

The rules' names and numbers stand in a data file, `tests/data/tiny_models.json`: sizes by field name, and hand-set
values where the fields of a model must agree with each other in a way that no name tells. `NAME+VARIANT` names a
configuration with further values of that file.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DATA_FILE = Path(__file__).resolve().parents[3] / "tests" / "data" / "tiny_models.json"


def load_rules(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The data file; `fields` as a mapping from field name to value."""
    with open(path or DATA_FILE, encoding="utf-8") as f:
        rules = json.load(f)
    rules["fields"] = {name: group["value"] for group in rules["fields"] for name in group["names"].split()}
    return rules


def tiny_config(
    model_type: str, overrides: dict[str, Any] | None = None, rules: dict[str, Any] | None = None
) -> PretrainedConfig:
    """A configuration of about two layers and a width of 64; `overrides` win over the rules and the data file."""
    from transformers import AutoConfig

    rules = rules or load_rules()
    base_type = model_type.split("+")[0]
    config_class = type(AutoConfig.for_model(base_type))
    values = _Rules(rules).values(config_class)
    for source in (rules["overrides"].get(base_type), rules["variants"].get(model_type), overrides):
        values.update(_with_int_keys(source or {}))
    return config_class(**values)


def _with_int_keys(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no integer keys; tables by layer number do."""
    return {
        k: {int(i): x for i, x in v.items()} if isinstance(v, dict) and v and all(i.isdigit() for i in v) else v
        for k, v in values.items()
    }


def _parameters(config_class: type) -> set[str]:
    if dataclasses.is_dataclass(config_class):
        return {f.name for f in dataclasses.fields(config_class)}
    names: set[str] = set()
    for cls in config_class.__mro__:
        if "__init__" in cls.__dict__:
            names |= set(inspect.signature(cls.__init__).parameters)
    return names


class _Rules:
    """Applies the data file to a configuration class: the default configuration's values, made small."""

    def __init__(self, rules: dict[str, Any]):
        self.fields: dict[str, int] = rules["fields"]
        self.periods: dict[str, int] = rules["periods"]
        self.rules = rules

    def values(self, config_class: type, depth: int = 0) -> dict[str, Any]:
        default = config_class()
        old = {**default.to_dict(), **{k: v for k, v in vars(default).items() if not k.startswith("_")}}
        known = _parameters(config_class)
        for alias, name in (getattr(config_class, "attribute_map", None) or {}).items():
            old.setdefault(alias, old.get(name))
        new = {
            name: value
            for name, value in self.fields.items()
            if name in known and isinstance(old.get(name), (int, float)) and not isinstance(old.get(name), bool)
        }
        self._heads(old, known, new)
        self._widths(old, known, new)
        self._tokens(old, new)
        self._layers(old, known, new)
        for name in getattr(config_class, "sub_configs", None) or {}:
            part = getattr(default, name, None)
            if depth < 2 and hasattr(part, "to_dict"):
                try:
                    new[name] = self._part(type(part), depth + 1)
                except Exception:
                    continue  # a part that is not built here
        return new

    def _part(self, config_class: type, depth: int) -> dict[str, Any]:
        """Values of a configuration within another one; its type is told where any may stand there."""
        kind = getattr(config_class, "model_type", "")
        own = _with_int_keys(self.rules["overrides"].get(kind) or {})
        return {"model_type": kind, **self.values(config_class, depth), **own}

    def _heads(self, old: dict[str, Any], known: set[str], new: dict[str, Any]) -> None:
        heads = next((old[k] for k in self.rules["head_counts"] if isinstance(old.get(k), int)), None)
        for name in self.rules["key_head_counts"]:
            count = old.get(name)
            if name in known and isinstance(count, int) and not isinstance(count, bool):
                new[name] = 1 if count == 1 else 4 if count == heads else 2

    def _widths(self, old: dict[str, Any], known: set[str], new: dict[str, Any]) -> None:
        rotary = old.get("qk_rope_head_dim")
        if rotary and old.get("head_dim") == rotary and "head_dim" in known:
            new["head_dim"] = self.fields["qk_rope_head_dim"]
        if "expand" in old and "state_size" in old:  # state space: heads * head_dim = expand * hidden
            new.pop("intermediate_size", None)
            if "num_heads" in old:
                new["num_heads"], new["head_dim"] = 8, 16
        for name in ("n_groups", "n_group", "num_expert_group"):
            if name in known and isinstance(old.get(name), int) and old[name] > 1:
                new[name] = 2
                if name != "n_groups" and "topk_group" in known and old.get("topk_group") is not None:
                    new["topk_group"] = 1
        for name in ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"):
            if old.get(name) == 1 and name in known:
                new[name] = 1
        for name in ("shared_intermediate_size", "sliding_window", "moe_latent_size"):
            if old.get(name) in (0, None):
                new.pop(name, None)

    def _tokens(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for name, value in old.items():
            if not name.endswith(("token_id", "token_index")):
                continue
            kind = name.split("_")[0]
            outside = isinstance(value, int) and value >= self.fields["vocab_size"]
            if isinstance(value, int) and any(part in name for part in ("image", "video", "audio", "vision")):
                new[name] = 2 * self.fields["vocab_size"]  # a place for what is no text, which no text holds
            elif isinstance(value, int) and not isinstance(value, bool) and (outside or kind == "eos"):
                new[name] = {"pad": 0, "bos": 1, "eos": 2}.get(kind, 3)
            elif isinstance(value, (list, tuple)) and value:
                new[name] = [2]

    def _layers(self, old: dict[str, Any], known: set[str], new: dict[str, Any]) -> None:
        """The fewest layers that show every value of every per-layer list, at least two; four where kinds alternate."""
        counts = self.rules["layer_counts"]
        key = next((k for k in counts if isinstance(old.get(k), int)), None)
        if key is None:
            return
        count = old[key]
        lists = {k: v for k, v in old.items() if isinstance(v, (list, tuple)) and len(v) == count > 2}
        periods = [k for k in self.periods if k in known and isinstance(old.get(k), int) and old[k] > 1]
        pick = _representative_layers(lists, count)
        if periods and not lists:
            pick = list(range(4))
        more = self.fields.get("extra_layers", 0)  # a size of our own, for generated cases
        pick = sorted([*pick, *[i for i in range(count) if i not in pick][:more]])
        for name in {key, *(k for k in counts if k in known and old.get(k) == count)}:
            if name in known:
                new[name] = len(pick)
        new.update({k: [v[i] for i in pick] for k, v in lists.items() if k in known})
        for name in periods:
            if lists:
                new.pop(name, None)
            else:
                new[name] = self.periods[name]
        for name in ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"):
            if name in known and isinstance(old.get(name), int) and old[name] > 0:
                new[name] = 1
        if "moe_layer_end_index" in known:
            new["moe_layer_end_index"] = len(pick) - 1
        if isinstance(old.get("mlp_only_layers"), list) and old["mlp_only_layers"]:
            new["mlp_only_layers"] = [0]
        if "num_kv_shared_layers" in known and old.get("num_kv_shared_layers"):
            self._shared_layers(old, known, new, key, lists)
        if isinstance(old.get("per_layer_config"), dict) and "layer_types" in new:
            new["per_layer_config"] = self._per_layer(old, pick)

    def _shared_layers(
        self, old: dict[str, Any], known: set[str], new: dict[str, Any], key: str, lists: dict[str, Any]
    ) -> None:
        """Every kind of layer twice: once with keys of its own, once sharing those of the first."""
        kinds = list(dict.fromkeys(new.get("layer_types") or old["layer_types"][:2]))
        new["layer_types"], new[key], new["num_kv_shared_layers"] = kinds * 2, 2 * len(kinds), len(kinds)
        for name, values in lists.items():
            if name != "layer_types" and name in known:
                new[name] = [values[0]] * new[key]

    def _per_layer(self, old: dict[str, Any], pick: list[int]) -> dict[int, Any]:
        table = {}
        for number, layer in enumerate(pick):
            entries = old["per_layer_config"]
            entry = entries.get(f"{layer:02d}") or entries.get(str(layer)) or entries.get(layer)
            if entry:
                entry = entry if isinstance(entry, dict) else entry.to_dict()
                table[number] = {k: self._small(k, v, old) for k, v in entry.items()}
        return table

    def _small(self, name: str, value: Any, old: dict[str, Any]) -> Any:
        if name == "head_dim":
            wide = isinstance(old.get("head_dim"), int) and value > old["head_dim"]
            return self.fields["head_dim"] * (2 if wide else 1)
        return 2 if name in self.rules["key_head_counts"] else self.fields.get(name, value)


def _representative_layers(lists: dict[str, Any], count: int) -> list[int]:
    seen: dict[str, set[str]] = {k: set() for k in lists}
    pick: list[int] = []
    for layer in range(count):
        if any(str(v[layer]) not in seen[k] for k, v in lists.items()):
            pick.append(layer)
            for k, v in lists.items():
                seen[k].add(str(v[layer]))
    pick += [layer for layer in range(count) if layer not in pick][: max(0, 2 - len(pick))]
    return sorted(pick)[:6]
