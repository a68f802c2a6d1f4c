"""Pictures of a study."""

from __future__ import annotations

import math
import os
import pathlib
import statistics
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.ticker

from tf_largebatch.files import replacing
from tf_largebatch.study.config import Study
from tf_largebatch.study.report import MEASURES, Rows, summary

# Told apart in grey by their markers and dashes.
MARKERS = "osD^vPX*<>hd"
DASHES = ("-", "--", "-.", ":")
SIZE, DPI = (8.0, 5.0), 120


def write_plots(study: Study, rows: Rows, directory: str | os.PathLike[str]) -> None:
    """Draws what README.md lists: `accuracy.png`, `learning_curves.png` and so on."""
    directory = pathlib.Path(directory)
    _save(_accuracy(study, rows), directory / "accuracy.png")
    _save(_curves(study, rows), directory / "learning_curves.png")
    _save(_trials(study, rows), directory / "trials.png")
    if any("agreements" in row for row in rows):
        _save(_agreement(study, rows), directory / "agreement.png")
    if study.robustness is not None:
        _save(_robustness(study, rows), directory / "robustness.png")
    if _ranges(study):
        _save(_search(study, rows), directory / "search.png")
    if len(study.batch_sizes) > 1:
        _save(_learning_rate(study, rows), directory / "learning_rate.png")


def _accuracy(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Test accuracy of the final runs, a bar for each arm and a dot for each seed, at each batch size."""
    figure, axes = _panels(len(study.batch_sizes))
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        found = {arm.name: summary(study, arm, batch_size, rows) for arm in study.arms}
        tested = {name: values["test"] for name, values in found.items() if values and values["test"]}
        names = sorted(tested, key=lambda name: statistics.mean(tested[name]))
        axis.barh(names, [100 * statistics.mean(tested[name]) for name in names], color="0.8", edgecolor="0.3")
        for name in names:
            axis.plot([100 * value for value in tested[name]], [name] * len(tested[name]), "k.", markersize=5)
        if tested:
            low = min(100 * value for values in tested.values() for value in values)
            axis.set_xlim(left=max(0.0, low - 5))
        axis.set_title(f"batch {batch_size}")
        axis.set_xlabel("test accuracy, %")
    return figure


def _curves(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Validation accuracy of the final runs over the updates, the mean over the seeds."""
    figure, axes = _panels(len(study.batch_sizes))
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        for number, arm in enumerate(study.arms):
            final = [
                row["curve"]
                for row in rows
                if (row["arm"], row["batch_size"], row["phase"]) == (arm.name, batch_size, "final")
                and row["status"] == "trained"
            ]
            if final:
                updates = [point[0] for point in final[0]]
                means = [100 * statistics.mean(curve[k][2] for curve in final) for k in range(len(updates))]
                axis.plot(updates, means, label=arm.name, **_style(number))
        axis.set_title(f"batch {batch_size}")
        axis.set_xlabel("updates")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.set_ylabel("validation accuracy, %")
    _legend(axes[0])
    return figure


def _agreement(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Returns ||grad|| / s over the updates.

    It is the geometric mean over the adapted tensors, or else all, and the final runs.
    """
    figure, axes = _panels(len(study.batch_sizes))
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        for number, arm in enumerate(study.arms):
            mine = [
                row
                for row in rows
                if (row["arm"], row["batch_size"], row["status"]) == (arm.name, batch_size, "trained")
                and row.get("agreements")
            ]
            final = [row for row in mine if row["phase"] == "final"] or mine
            if final:
                updates = [point[0] for point in final[0]["curve"]]
                columns = zip(*(values for row in final for values in row["agreements"].values()), strict=True)
                means = [statistics.geometric_mean([m for m in column if m] or [1.0]) for column in columns]
                axis.semilogy(updates, means, label=arm.name, **_style(number))
        axis.axhline(batch_size**-0.5, color="k", linewidth=1, label="independent noise, 1/sqrt(B)")
        axis.set_title(f"batch {batch_size}")
        axis.set_xlabel("updates")
        axis.set_ylabel("gradient agreement, ||grad|| / s")
    _legend(axes[0])
    return figure


def _robustness(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Accuracy on test images as they are and after attacks, and on training images: means of the final runs."""
    figure, axes = _panels(len(study.batch_sizes))
    series = {"test_accuracy": "test images", **{name: MEASURES[name] for name in MEASURES if "accuracy" in name}}
    series["train_accuracy"] = "training images"
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        final = [row for row in rows if (row["batch_size"], row["phase"]) == (batch_size, "final")]
        arms = [arm.name for arm in study.arms if any(row["arm"] == arm.name for row in final)][::-1]
        for number, (key, label) in enumerate(series.items()):
            found = [[row[key] for row in final if row["arm"] == arm and row.get(key) is not None] for arm in arms]
            means = [100 * statistics.mean(values) if values else math.nan for values in found]
            axis.plot(means, arms, label=label, **{**_style(number), "linestyle": "none", "markersize": 7})
        axis.set_title(f"batch {batch_size}, attacks of radius {study.robustness:g}/255")
        axis.set_xlabel("accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _trials(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Validation accuracies of all trials in falling order: how much of the search space trains."""
    figure, axes = _panels(len(study.batch_sizes))
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        for number, arm in enumerate(study.arms):
            search = [
                100 * row["validation_accuracy"]
                for row in rows
                if (row["arm"], row["batch_size"], row["phase"]) == (arm.name, batch_size, "search")
            ]
            if search:
                axis.plot(range(1, len(search) + 1), sorted(search, reverse=True), label=arm.name, **_style(number))
        axis.set_title(f"batch {batch_size}")
        axis.set_xlabel("trials, best first")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.set_ylabel("validation accuracy, %")
    _legend(axes[0])
    return figure


def _search(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Validation accuracy of all trials over each hyper-parameter that is searched on a range."""
    names = _ranges(study)
    figure, axes = _panels(len(names) * len(study.batch_sizes), columns=len(names))
    panels = [(batch_size, name) for batch_size in study.batch_sizes for name in names]
    for axis, (batch_size, name) in zip(axes, panels, strict=True):
        for number, arm in enumerate(study.arms):
            if name not in arm.space:
                continue
            search = sorted(
                (row["point"][name], 100 * row["validation_accuracy"])
                for row in rows
                if (row["arm"], row["batch_size"], row["phase"]) == (arm.name, batch_size, "search")
            )
            # One searched hyper-parameter makes a curve, several make a cloud.
            style = _style(number) if len(arm.space) == 1 else {**_style(number), "linestyle": "none"}
            if search:
                axis.plot(*zip(*search, strict=True), label=arm.name, **style)
        axis.set_xscale("log" if all(a.space[name].scale == "log" for a in study.arms if name in a.space) else "linear")
        axis.set_title(f"batch {batch_size}")
        axis.set_xlabel(name)
        axis.set_ylabel("validation accuracy, %")
    # One legend for all panels: not every arm searches every hyper-parameter.
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    named = {arm.name: handles[arm.name] for arm in study.arms if arm.name in handles}
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=7, fontsize="small")
    return figure


def _ranges(study: Study) -> list[str]:
    """Returns the hyper-parameters that some arm searches on a range."""
    found = (name for arm in study.arms for name, dimension in arm.space.items() if dimension.scale != "choice")
    return list(dict.fromkeys(found))


def _learning_rate(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Returns the best learning rate of each arm over the batch size.

    Of layer-wise optimizers it is that of the adapted tensors.
    """
    figure, axes = _panels(1)
    for number, arm in enumerate(study.arms):
        found = [(batch_size, summary(study, arm, batch_size, rows)) for batch_size in study.batch_sizes]
        points = [(b, v["point"].get("adapted_learning_rate", v["point"]["learning_rate"])) for b, v in found if v]
        if points:
            axes[0].loglog(*zip(*points, strict=True), label=arm.name, **_style(number))
    axes[0].set_xlabel("batch size, examples")
    axes[0].set_ylabel("best learning rate")
    axes[0].set_xticks(study.batch_sizes, [str(b) for b in study.batch_sizes])
    axes[0].minorticks_off()
    _legend(axes[0])
    return figure


def _style(number: int) -> dict[str, Any]:
    marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
    return {"color": f"C{number % 10}", "marker": marker, "linestyle": dash, "markersize": 5, "linewidth": 1.5}


def _panels(count: int, columns: int = 2) -> tuple[matplotlib.figure.Figure, list[Any]]:
    columns = min(count, columns)
    lines = -(-count // columns)
    size = (SIZE[0] * (1 if columns == 1 else 1.6), SIZE[1] * lines)
    figure = matplotlib.figure.Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
    return figure, axes[:count]


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", ncols=2)


def _save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
