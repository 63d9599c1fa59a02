"""The text model's tensors within a larger checkpoint, told by their names."""

from __future__ import annotations

from autodeploy.weights.inner_model import inner_names

WANTED = ["model.embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.1.mlp.weight", "lm_head.weight"]
TOWER = ["vision.layers.0.mlp.weight", "vision.layers.1.mlp.weight", "vision.layers.2.mlp.weight"]


def found(names: list[str]) -> dict[str, str]:
    return inner_names(names, WANTED, "model", "model.embed_tokens.weight")


def test_a_prefix_within_the_base() -> None:
    names = [n.replace("model.", "model.language_model.") for n in WANTED] + TOWER
    assert found(names) == {n.replace("model.", "model.language_model."): n for n in WANTED}


def test_a_prefix_before_the_whole_text_model() -> None:
    names = [f"language_model.{n}" for n in WANTED] + TOWER
    assert found(names) == {f"language_model.{n}": n for n in WANTED}


def test_names_that_a_conversion_changes_later_come_along() -> None:
    names = ["text.embed_tokens.weight", "text.layers.0.mlp.experts.0.w1.weight", *TOWER]
    assert found(names) == {
        "text.embed_tokens.weight": "model.embed_tokens.weight",
        "text.layers.0.mlp.experts.0.w1.weight": "model.layers.0.mlp.experts.0.w1.weight",
    }


def test_of_two_text_models_the_one_with_more_of_the_wanted_tensors() -> None:
    talker = ["talker.embed_tokens.weight", "talker.layers.0.mlp.weight"]
    names = [n.replace("model.", "thinker.") for n in WANTED] + talker
    assert found(names)["thinker.layers.1.mlp.weight"] == "model.layers.1.mlp.weight"
    assert not set(found(names)) & set(talker)


def test_nothing_where_it_cannot_be_told() -> None:
    twins = [n.replace("model.", f"{side}.") for side in ("a", "b") for n in WANTED[:3]]
    assert found(twins) == {}
    assert found(TOWER) == {}
