"""Views of every kind: what is joined, what stays a run-time number, and that the kernels read the right elements."""

from __future__ import annotations

import pytest
from region_cases import Made, View, check, instruction_of

from autodeploy.artifact.program import Region, RegionNode
from autodeploy.codegen.iteration import Iteration, walk_of

ACTS = ("bfloat16", "float32")
TOKENS = (1, 7, 33)
# Rounds in between, and gives an intermediate result back.
SUM = Region(
    ("act", "act"),
    (RegionNode("mul", "act", (0, 1)), RegionNode("add", "act", (2, 0)), RegionNode("lt", "bool", (2, 1))),
    (3, 2, 4),
)


def sum_of(shape: tuple, a: View, b: View) -> Made:
    return instruction_of(SUM, [a, b], shape)


def whole(*shape: int | str) -> View:
    return View("act", shape)


CASES: dict[str, Made] = {
    "contiguous": sum_of(("T", 64), whole("T", 64), whole("T", 64)),
    "one number": sum_of((), whole(), whole()),
    "one per token": sum_of(("T",), whole("T"), whole("T")),
    "odd rows": sum_of(("T", 45), whole("T", 45), View("act", ("T", 45), (90, 1), 45, ("T", 90))),
    "bias": sum_of(("T", 280), whole("T", 280), View("act", ("T", 280), (0, 1), 0, (280,))),
    "a number for all": sum_of(("T", 24), whole("T", 24), View("act", ("T", 24), (0, 0), 3, (8,))),
    "a number per row": sum_of(("T", 40), whole("T", 40), View("act", ("T", 40), (1, 0), 0, ("T",))),
    "halves of a row": sum_of(
        ("T", 96), View("act", ("T", 96), (192, 1), 0, ("T", 192)), View("act", ("T", 96), (192, 1), 96, ("T", 192))
    ),
    "an offset that breaks alignment": sum_of(
        ("T", 32), View("act", ("T", 32), (72, 1), 3, ("T", 72)), View("act", ("T", 32), (72, 1), 40, ("T", 72))
    ),
    "every second": sum_of(
        ("T", 16), View("act", ("T", 16), (32, 2), 0, ("T", 32)), View("act", ("T", 16), (32, 2), 1, ("T", 32))
    ),
    "heads": sum_of(
        ("T", 6, 16),
        View("act", ("T", 6, 16), (128, 16, 1), 16, ("T", 128)),
        View("act", ("T", 6, 16), (16, 0, 1), 0, ("T", 16)),
    ),
    "transposed": sum_of((6, "T", 8), View("act", (6, "T", 8), (8, 48, 1), 0, ("T", 48)), whole(6, "T", 8)),
    "tokens innermost": sum_of((5, "T"), View("act", (5, "T"), (1, 5), 0, ("T", 5)), whole(5, "T")),
    "a multiple of T innermost": sum_of(
        (3, "8*T"), View("act", (3, "8*T"), ("16*T", 1), "8*T", ("48*T",)), whole(3, "8*T")
    ),
    "experts of tokens": sum_of(("8*T", 24), whole("8*T", 24), View("act", ("8*T", 24), (0, 1), 0, (24,))),
    "rows": sum_of(("R", 48), whole("R", 48), View("act", ("R", 48), (96, 1), 48, ("R", 96))),
    "dims of size 1": sum_of(
        ("T", 1, 20, 1), whole("T", 1, 20, 1), View("act", ("T", 1, 20, 1), (0, 7, 1, 5), 0, (20,))
    ),
    "five dims": sum_of(
        ("T", 2, 3, 4, 5),
        View("act", ("T", 2, 3, 4, 5), (120, 60, 1, 3, 12), 0, ("T", 120)),
        View("act", ("T", 2, 3, 4, 5), (24, 12, 4, 1, 0), 0, ("T", 24)),
    ),
    "pairs of a body": sum_of(("N", "8*S"), whole("N", "8*S"), View("act", ("N", "8*S"), (0, 1), 0, ("8*S",))),
    "heads of pairs": sum_of(
        (4, "N", "2*S"), whole(4, "N", "2*S"), View("act", (4, "N", "2*S"), ("2*S", 0, 1), 0, (4, "2*S"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", CASES)
def test_reads_the_right_elements(name: str, act: str) -> None:
    pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")
    for tokens in TOKENS:
        check(CASES[name], act, (tokens, min(tokens, 5)), limit=0.0, seed=tokens)


def test_no_elements() -> None:
    made = sum_of(("T", 0), whole("T", 0), whole("T", 0))
    assert walk_of(made.instruction, made.values, []).iteration.inner == ()


def test_a_region_that_reads_nothing() -> None:
    pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")
    region = Region((), (RegionNode("const", "act", (), 0.3), RegionNode("exp", "act", (0,))), (1, 0))
    for tokens in TOKENS:
        check(instruction_of(region, [], ("T", 9)), "bfloat16", (tokens, 1), limit=1.0)


def pattern(name: str) -> Iteration:
    made = CASES[name]
    return walk_of(made.instruction, made.values, []).iteration


def test_what_is_joined() -> None:
    assert pattern("contiguous").inner == ()
    assert pattern("bias").inner == (280,)
    assert [a.strides for a in pattern("heads").accesses] == [(128, 16, 1), (16, 0, 1)]
    assert pattern("dims of size 1").inner == (20,)
    assert pattern("five dims").inner == (3, 4, 5)
    assert [a.is_flat for a in pattern("tokens innermost").accesses] == [False, True]


def test_equal_patterns_of_other_sizes() -> None:
    """The outermost size is nobody's business: tokens, rows and a number share their kernels."""
    of = [sum_of((n, 64), whole(n, 64), whole(n, 64)) for n in ("T", "R", "16*T", 5)]
    assert len({walk_of(m.instruction, m.values, []).iteration for m in of}) == 1


def test_run_time_numbers() -> None:
    walk = walk_of(*(CASES["a multiple of T innermost"].instruction, CASES["a multiple of T innermost"].values, []))
    assert [(n.name, n.granule) for n in walk.iteration.numbers] == [("size0", 8), ("stride0", 16), ("stride1", 8)]
    assert walk.numbers == ({"size": ["out", 0, 1]}, {"stride": ["in", 0, 0]}, {"stride": ["in", 1, 0]})
    assert walk.iteration.vector == 8


@pytest.mark.parametrize(("name", "vector"), [("contiguous", 8), ("odd rows", 1), ("bias", 8), ("five dims", 1)])
def test_vector(name: str, vector: int) -> None:
    assert pattern(name).vector == vector


def test_alignment_is_proved() -> None:
    granules = [a.granule for a in pattern("an offset that breaks alignment").accesses]
    assert granules == [1, 8]
    assert [a.granule for a in pattern("a multiple of T innermost").accesses] == [8, 16]
