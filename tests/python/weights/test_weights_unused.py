"""What is said of tensors that nothing takes."""

from __future__ import annotations

from autodeploy.weights.unused import by_prefix, describe

NAMES = [f"tower.layers.{i}.weight" for i in range(20)] + ["projector.weight"]


def test_counts_by_prefix() -> None:
    assert by_prefix(NAMES) == {"tower.layers": 20, "projector.weight": 1}
    assert by_prefix([]) == {}
    assert len(by_prefix([f"{i}.weight" for i in range(20)])) == 20


def test_a_line() -> None:
    assert describe(NAMES) == "21 tensors of the checkpoint are not used: tower.layers 20, projector.weight 1"
    assert describe([f"{i}.weight" for i in range(20)]).endswith(" and 12 more")
