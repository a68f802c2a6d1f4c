"""Pictures of a study."""

from __future__ import annotations

import math
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.ticker

from tf_largebatch.plots import style
from tf_largebatch.study.config import Arm, Study
from tf_largebatch.study.report import Rows, summary

# Lines are told apart in grey by their markers and dashes.
MARKERS = "osD^vPX*<>hd"
DASHES = ("-", "--", "-.", ":")
# More lines than this cannot be told apart: then the best arms are named and the others are drawn in grey.
_NAMED_AT_MOST, _NAMED_OF_MANY = 14, 7
_PANEL = (6.6, 4.8)
# What a legend's text takes of the width of a picture, characters an inch, and its line beside the text.
_CHARACTERS, _LINE = 10.0, 7
_PHRASES = {
    "adapted_learning_rate": "learning rate of the adapted tensors",
    "denominator": "denominator of the rate",
    "eta": "trust coefficient, eta",
    "max_agreement": "cap of the agreement",
    "max_rate": "cap of the layer-wise rate",
    "micro_batch_size": "micro-batch, examples",
    "norm_examples": "examples that are measured",
    "power": "power of the decay",
    "unadapted_rate_factor": "share of the learning rate without adaptation",
}
_ACCURACIES = {
    "test_accuracy": "test images",
    "robust_accuracy_1_step": "attacked, 1 step",
    "robust_accuracy_10_steps": "attacked, 10 steps",
    "train_accuracy": "training images",
}


def write_plots(study: Study, rows: Rows, directory: str | os.PathLike[str]) -> None:
    """Draws what README.md lists: `accuracy.png`, `learning_curves.png` and so on."""
    directory = pathlib.Path(directory)
    pictures: dict[str, Callable[[Study, Rows], matplotlib.figure.Figure]] = {}
    if any(row["phase"] == "final" for row in rows):
        pictures |= {"accuracy": _accuracy, "learning_curves": _curves}
    if study.trials > 1:
        pictures["trials"] = _trials
    if any("agreements" in row for row in rows):
        pictures["agreement"] = _agreement
    if study.robustness is not None:
        pictures["robustness"] = _robustness
    if _ranges(study):
        pictures["search"] = _search
    if len(study.batch_sizes) > 1 and any(_searched_rate(arm) for arm in study.arms):
        pictures["learning_rate"] = _learning_rate
    with style.settings():
        for name, draw in pictures.items():
            style.save(draw(study, rows), directory / f"{name}.png")


def _accuracy(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Draws the test accuracy of the final runs, the best arm first: circles for the seeds, a stroke at the mean."""
    figure, axes = _panels(len(study.batch_sizes), height=1.4 + 0.3 * len(study.arms), sharex=True)
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        found = {arm.name: summary(study, arm, batch_size, rows) for arm in study.arms}
        tested = {name: [100 * x for x in values["test"]] for name, values in found.items() if values}
        names = sorted((name for name in tested if tested[name]), key=lambda name: statistics.mean(tested[name]))
        seeds = [(value, name) for name in names for value in tested[name]]
        means = [statistics.mean(tested[name]) for name in names]
        axis.plot(*_columns(seeds), "o", color="0.45", mfc="none", markersize=6, label="a seed")
        axis.plot(means, names, "|", color="k", markersize=15, markeredgewidth=2.5, label="mean")
        _finish(axis, batch_size, "test accuracy, %", "")
        axis.tick_params(labelbottom=True)
        axis.set_ylim(-0.7, len(names) - 0.3)
    _legend(figure, axes)
    return figure


def _curves(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Draws the validation accuracy of the final runs over the updates, the mean over the seeds."""
    figure, axes = _panels(len(study.batch_sizes), sharey=True)
    looks = _looks(study, rows)
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        for arm in study.arms:
            curves = [row["curve"] for row in _runs(rows, arm, batch_size, "final") if row["status"] == "trained"]
            if curves:
                updates = [point[0] for point in curves[0]]
                means = [100 * statistics.mean(curve[k][2] for curve in curves) for k in range(len(updates))]
                axis.plot(updates, means, **looks[arm.name])
        _finish(axis, batch_size, "update", "validation accuracy, %")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    _legend(figure, axes)
    return figure


def _agreement(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Draws ||grad|| / s over the updates.

    It is the geometric mean over the adapted tensors, or else all, and the final runs.
    """
    figure, axes = _panels(len(study.batch_sizes))
    looks = _looks(study, rows)
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        drawn: list[float] = []
        for arm in study.arms:
            mine = [row for row in _runs(rows, arm, batch_size) if row["status"] == "trained" and row.get("agreements")]
            final = [row for row in mine if row["phase"] == "final"] or mine
            if final:
                updates = [point[0] for point in final[0]["curve"]]
                columns = zip(*(values for row in final for values in row["agreements"].values()), strict=True)
                means = [statistics.geometric_mean([m for m in column if m] or [1.0]) for column in columns]
                axis.plot(updates, means, **looks[arm.name])
                drawn += means
        axis.axhline(batch_size**-0.5, color="k", linewidth=1.5, label="independent noise, 1/√B")
        _finish(axis, batch_size, "update", "gradient agreement, ‖∇f‖ / s")
        style.choose_scale(axis, drawn)
    _legend(figure, axes)
    return figure


def _robustness(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Draws accuracies on test images, clean and attacked, and on training images: means, and a dot for each seed."""
    figure, axes = _panels(len(study.batch_sizes), height=2.6 + 0.32 * len(study.arms), width=9.0)
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        final = {arm.name: _runs(rows, arm, batch_size, "final") for arm in study.arms}
        arms = [name for name, found in final.items() if found][::-1]
        for number, (key, label) in enumerate(_ACCURACIES.items()):
            found = {arm: [100 * row[key] for row in final[arm] if row.get(key) is not None] for arm in arms}
            means = [statistics.mean(found[arm]) if found[arm] else math.nan for arm in arms]
            look = {**_style(number), "linestyle": "none", "markersize": 9}
            axis.plot(means, arms, label=label, **{**look, "mfc": "none", "markeredgewidth": 2})
            axis.plot(*_columns([(v, arm) for arm in arms for v in found[arm]]), ".", color=look["color"], markersize=4)
        _finish(axis, batch_size, f"accuracy, % (attacks of radius {study.robustness:g}/255)", "")
    _legend(figure, axes)
    return figure


def _trials(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Draws the validation accuracies of all trials in falling order: how much of the search space trains."""
    figure, axes = _panels(len(study.batch_sizes), sharey=True)
    looks = _looks(study, rows)
    for axis, batch_size in zip(axes, study.batch_sizes, strict=True):
        for arm in study.arms:
            search = [100 * row["validation_accuracy"] for row in _runs(rows, arm, batch_size, "search")]
            if search:
                axis.plot(range(1, len(search) + 1), sorted(search, reverse=True), **looks[arm.name])
        _finish(axis, batch_size, "trials, the best first", _validation(rows))
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    _legend(figure, axes)
    return figure


def _search(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Draws the validation accuracy of all trials over each hyper-parameter that is searched on a range."""
    names = _ranges(study)
    figure, axes = _panels(len(names) * len(study.batch_sizes), columns=len(names))
    looks = _looks(study, rows)
    panels = [(batch_size, name) for batch_size in study.batch_sizes for name in names]
    for axis, (batch_size, name) in zip(axes, panels, strict=True):
        arms = [arm for arm in study.arms if name in arm.space]
        for arm in arms:
            found = _runs(rows, arm, batch_size, "search")
            search = sorted((row["point"][name], 100 * row["validation_accuracy"]) for row in found)
            # One searched hyper-parameter makes a curve, several make a cloud.
            look = looks[arm.name] if len(arm.space) == 1 else {**looks[arm.name], "linestyle": "none"}
            if search:
                axis.plot(*_columns(search), **look)
        axis.set_xscale("log" if all(arm.space[name].scale == "log" for arm in arms) else "linear")
        _finish(axis, batch_size, _phrase(name), _validation(rows))
    _legend(figure, axes)
    return figure


def _ranges(study: Study) -> list[str]:
    """Returns the hyper-parameters that some arm searches on a range."""
    found = (name for arm in study.arms for name, dimension in arm.space.items() if dimension.scale != "choice")
    return list(dict.fromkeys(found))


def _learning_rate(study: Study, rows: Rows) -> matplotlib.figure.Figure:
    """Draws the best learning rate over the batch size, of the arms that search it.

    Of layer-wise optimizers it is that of the adapted tensors.
    """
    figure, axes = _panels(1, width=9.0)
    looks = _looks(study, rows)
    drawn = []
    for arm in study.arms:
        name = _searched_rate(arm)
        found = [(batch_size, summary(study, arm, batch_size, rows)) for batch_size in study.batch_sizes]
        points = [(batch_size, values["point"][name]) for batch_size, values in found if values] if name else []
        if points:
            axes[0].plot(*_columns(points), **looks[arm.name])
            drawn += [rate for _, rate in points]
    axes[0].set_xscale("log")
    style.choose_scale(axes[0], drawn)
    axes[0].set_xlabel("batch size, examples")
    axes[0].set_ylabel("best peak learning rate of the search")
    axes[0].set_xticks(study.batch_sizes, [f"{batch_size:,}" for batch_size in study.batch_sizes])
    axes[0].xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    _legend(figure, axes)
    return figure


def _searched_rate(arm: Arm) -> str | None:
    """Returns the learning rate that an arm searches, of layer-wise optimizers that of the adapted tensors."""
    return next((name for name in ("adapted_learning_rate", "learning_rate") if name in arm.space), None)


def _runs(rows: Rows, arm: Arm, batch_size: int, phase: str | None = None) -> list[Mapping[str, Any]]:
    mine = [row for row in rows if (row["arm"], row["batch_size"]) == (arm.name, batch_size)]
    return [row for row in mine if phase in (None, row["phase"])]


def _looks(study: Study, rows: Rows) -> dict[str, dict[str, Any]]:
    """Returns label and style of each arm's line; of many arms only those with the best trials have their own."""
    arms = list(study.arms)
    if len(arms) > _NAMED_AT_MOST:
        arms = sorted(arms, key=lambda arm: -_best(study, arm, rows))[:_NAMED_OF_MANY]
    looks = {arm.name: {"label": arm.name, **_style(number)} for number, arm in enumerate(arms)}
    rest = len(study.arms) - len(arms)
    other = {"label": f"the other {rest}", "color": "0.75", "linewidth": 1, "zorder": 1, "marker": ".", "markersize": 4}
    return {arm.name: looks.get(arm.name, other) for arm in study.arms}


def _best(study: Study, arm: Arm, rows: Rows) -> float:
    """Returns the validation accuracy of an arm's best trial, the mean over the batch sizes."""
    found = [[row["validation_accuracy"] for row in _runs(rows, arm, size, "search")] for size in study.batch_sizes]
    return statistics.mean(max(values, default=0.0) for values in found)


def _style(number: int) -> dict[str, Any]:
    marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
    colour = style.COLOURS[number % len(style.COLOURS)]
    return {"color": colour, "marker": marker, "linestyle": dash, "markersize": 6, "linewidth": 1.8}


def _phrase(name: str) -> str:
    return _PHRASES.get(name, name.replace("_", " "))


def _validation(rows: Rows) -> str:
    """Returns the axis's label, which says what 0 is where trials diverged."""
    diverged = any(row["status"] == "diverged" for row in rows)
    return f"validation accuracy, %{' (0: diverged)' if diverged else ''}"


def _columns(points: Sequence[tuple[Any, Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*points, strict=True)) if points else [(), ()]


def _panels(
    count: int, columns: int = 2, width: float = _PANEL[0], height: float = _PANEL[1], **shared: Any
) -> tuple[matplotlib.figure.Figure, list[Any]]:
    columns = min(count, columns)
    lines = -(-count // columns)
    figure = style.new_figure(max(width * columns, 9.0), height * lines + 0.6)
    axes = list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
    return figure, axes[:count]


def _finish(axis: Any, batch_size: int, x: str, y: str) -> None:
    axis.set_title(f"batch {batch_size:,}")
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def _legend(figure: matplotlib.figure.Figure, axes: Sequence[Any]) -> None:
    """Draws one legend below all panels, where it covers nothing; what is in grey comes last."""
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = sorted(handles, key=lambda name: name.startswith("the other "))
    if names:
        columns = int(_CHARACTERS * figure.get_figwidth() / (max(map(len, names)) + _LINE))
        columns = max(1, min(columns, len(names), 7))
        labelled = [handles[name] for name in names]
        figure.legend(labelled, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=12)
