"""A picture of throughput against what one user gets, from the JSON of benches alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_curves(files: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Points of each file's curve, by the name of its model. Raises ValueError where a file has none."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for path in files:
        try:
            found = json.loads(path.read_text())
            points = [point for point in found["parts"]["curve"]["points"] if "error" not in point]
            name = f"{Path(found['model']).name}, {found['device']['name']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"[bench] --plot: expected what --part curve --json wrote in {path}, found {type(error).__name__}: "
                f"{error}"
            ) from None
        if not points:
            raise ValueError(f"[bench] --plot: expected measured points in {path}, found none")
        curves[name if name not in curves else f"{name} ({path.name})"] = points
    return curves


def plot_curves(files: Sequence[Path], out: Path) -> None:
    """Write a PNG: tokens per second over tokens per second and user, a line for each file, a mark for each batch size.

    Raises ValueError where matplotlib is missing, or a file has no curve.
    """
    curves = read_curves(files)
    if out.suffix != ".png":
        raise ValueError(f"[bench] -o: expected a file that ends in .png, found {out}")
    try:
        import matplotlib
    except ImportError:
        names = " ".join(f"--plot {path}" for path in files)
        raise ValueError(
            f"[bench] a picture: expected matplotlib, found none; pip install autodeploy[bench], here or where the "
            f"JSON is copied to, then: autodeploy bench {names} -o {out}"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, points in curves.items():
        x = [point["user_tokens_per_second"] for point in points]
        y = [point["tokens_per_second"] for point in points]
        axes.plot(x, y, marker="o", label=name)
        for place, point in enumerate(points):
            text = str(point["num_seqs"])
            axes.annotate(text, (x[place], y[place]), textcoords="offset points", xytext=(4, 5), fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("tokens/s of one user")
    axes.set_ylabel("tokens/s of all users")
    axes.set_title("Decoding; numbers are batch sizes")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    pyplot.close(figure)
