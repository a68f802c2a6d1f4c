"""Draws the picture of the README, docs/_static/overview.png, from benchmarks/reports/*.json and results/.

`python -m benchmarks.overview`
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import harness

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
    figure = Figure(figsize=(13, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    cost, update, attack = figure.subplots(1, 3, width_ratios=[1, 1, 1.1])
    _cost_of_norms(cost)
    _cost_of_updates(update)
    _accuracy_under_attack(attack)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


def _cost_of_norms(axes: Axes) -> None:
    measured = _read("norms.json")["cases"]
    names = [name for name in CASES if name in measured]
    bars = axes.barh([CASES[name] for name in names], [measured[name]["ratio"] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
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
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    _against(axes, "Update of ResNet-50's\n25.6 million parameters", "Keras SGD-momentum = 1")


def _against(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(unit)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _accuracy_under_attack(axes: Axes) -> None:
    found = json.loads((ADVERSARIAL_RUNS / "under_attack.json").read_text())
    for run, label, colour, marker in (("conadv", "ConAdv", ORANGE, "o"), ("plain", "plain", GREY, "s")):
        values = [100 * accuracy for accuracy in found["accuracy"][run]]
        axes.plot(found["epsilon"], values, color=colour, marker=marker, linewidth=2, label=label)
    axes.set_xlabel("size of a one-step attack (units of 1/255)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.set_title("Trained with and without ConAdv:\nCIFAR-10, 96 updates of 4096 images", fontsize=11)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _read(name: str) -> Any:
    return harness.read_report(harness.REPORTS / name)


if __name__ == "__main__":
    draw()
