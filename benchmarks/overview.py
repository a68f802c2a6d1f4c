"""Draws the picture of the README, docs/_static/overview.png, from benchmarks/*.json and results/.

`python -m benchmarks.overview`
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "_static" / "overview.png"
ADVERSARIAL_RUNS = ROOT / "results" / "cifar10_conadv"

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#7F7F7F"
CASES = {
    "resnet50": "ResNet-50, 224 px",
    "resnet20": "ResNet-20, 32 px",
    "mobilenetv2": "MobileNetV2, 96 px",
    "densenet121": "DenseNet121, 96 px",
    "resnet20_sampled": "ResNet-20, 128 of 1024",
}


def draw() -> None:
    """Writes the picture."""
    figure = Figure(figsize=(11, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    cost, update, attack = figure.subplots(1, 3, width_ratios=[1.25, 1.1, 1])
    _cost_of_norms(cost)
    _cost_of_updates(update)
    _accuracy_under_attack(attack)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


def _cost_of_norms(axes: Axes) -> None:
    measured = _read("norms.json")["cases"]
    names = [name for name in CASES if name in measured]
    bars = axes.barh([CASES[name] for name in names], [measured[name]["ratio"] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    _against(axes, "Exact per-example norms:\ntime of a training step", "plain Keras step = 1")


def _cost_of_updates(axes: Axes) -> None:
    (updates,) = (e["updates"] for name, e in _read("update.json").items() if name.startswith("tensorflow 2.20"))
    shown = {
        "Keras SGD": "Keras SGD-momentum",
        "CLARS": "CLARS, decay",
        "LARS": "LARS, decay",
        "Model Garden LARS": "Model Garden LARS, decay",
        "Keras Lamb": "Keras Lamb",
    }
    values = [updates[name]["ratio"] for name in shown.values()]
    colours = [BLUE if label in ("CLARS", "LARS") else GREY for label in shown]
    bars = axes.barh(list(shown), values, color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    _against(axes, "Update of ResNet-50's\n25.6 million parameters", "Keras SGD-momentum = 1")


def _against(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(unit)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _accuracy_under_attack(axes: Axes) -> None:
    runs = {"plain": "plain", "ConAdv": "conadv"}
    results = [json.loads((ADVERSARIAL_RUNS / directory / "result.json").read_text()) for directory in runs.values()]
    for offset, (key, label, colour) in enumerate(
        [("accuracy", "clean", GREY), ("accuracy_under_attack", "one-step attack", ORANGE)]
    ):
        places = [place + 0.4 * offset for place in range(len(runs))]
        bars = axes.bar(places, [100 * result[key] for result in results], 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.0f%%", padding=2)
    axes.set_xticks([place + 0.2 for place in range(len(runs))], list(runs))
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("ConAdv under attack:\nCIFAR-10, batch 4096", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    axes.margins(y=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _read(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / name).read_text())


if __name__ == "__main__":
    draw()
