"""`python -m tf_largebatch.study.gaps DIR... --reference=ARM --output=DIR`: arms without a search beside a reference.

For each setting, a study's directory and a batch size, an arm's gap is the mean test accuracy of its final runs minus
the reference's. The worst gap over the settings says whether one default does everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure

from tf_largebatch.check import require
from tf_largebatch.files import replacing
from tf_largebatch.plots import style
from tf_largebatch.study.config import read_study
from tf_largebatch.study.runner import CONFIG, RUNS, read_rows

Setting = tuple[str, int]
# Where the colours of the picture end, in points.
_LARGEST = 10


@dataclasses.dataclass(frozen=True)
class Reached:
    """What the runs of an arm reached at a setting.

    Attributes:
        accuracy: Mean test accuracy of the final runs.
        drop: The largest loss of validation accuracy of a run from its best evaluation to its last one.
        at_cap: Mean share of the adapted tensors whose rate was at the cap, over runs and evaluations; None without.
    """

    accuracy: float
    drop: float
    at_cap: float | None


def reached(directories: Sequence[pathlib.Path]) -> dict[str, dict[Setting, Reached]]:
    """Returns what each arm reached at each setting, of the arms that have final runs there."""
    found: dict[str, dict[Setting, Reached]] = {}
    for directory in directories:
        study = read_study(directory / CONFIG)
        rows = [row for row in read_rows(directory / RUNS) if row["phase"] == "final"]
        for arm in study.arms:
            for batch_size in study.batch_sizes:
                mine = [row for row in rows if (row["arm"], row["batch_size"]) == (arm.name, batch_size)]
                if mine:
                    found.setdefault(arm.name, {})[directory.name, batch_size] = _reached(mine)
    return found


def _reached(rows: Sequence[Mapping[str, Any]]) -> Reached:
    at_cap = [share for row in rows for share in row.get("at_cap", ())]
    return Reached(
        statistics.mean(row["test_accuracy"] for row in rows),
        max(row["best_validation_accuracy"] - row["validation_accuracy"] for row in rows),
        statistics.mean(at_cap) if at_cap else None,
    )


def worst_gap(mine: Mapping[Setting, Reached], reference: Mapping[Setting, Reached]) -> float:
    """Returns the smallest difference in accuracy to the reference over the settings that both have."""
    return min(mine[setting].accuracy - reference[setting].accuracy for setting in mine if setting in reference)


def markdown(found: Mapping[str, Mapping[Setting, Reached]], reference: str) -> str:
    """Returns a table with a line for each arm, the best worst gap first, in percent and percentage points."""
    settings = list(dict.fromkeys(setting for values in found.values() for setting in values))
    header = ["arm", *(f"{name}, {batch_size:,}" for name, batch_size in settings)]
    header += [f"worst gap to {reference}", "largest drop", "at the cap"]
    lines = [
        "# Gaps",
        "",
        f"Test accuracy in percent, mean of the final runs. Gap: to {reference}, in points. Drop: of the validation "
        "accuracy of a run from its best evaluation to its last one, in points. At the cap: share of the layer-wise "
        "rates, over tensors and evaluations.",
        "",
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
    ]
    of_reference = found[reference]
    for name in sorted(found, key=lambda name: -worst_gap(found[name], of_reference)):
        values = found[name]
        cells = [f"{100 * values[setting].accuracy:.1f}" if setting in values else "" for setting in settings]
        at_cap = [value.at_cap for value in values.values() if value.at_cap is not None]
        gap, drop = worst_gap(values, of_reference), max(value.drop for value in values.values())
        cells += [f"{100 * gap:+.1f}", f"{100 * drop:.1f}", f"{statistics.mean(at_cap):.0%}" if at_cap else ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(found: Mapping[str, Mapping[Setting, Reached]], reference: str) -> matplotlib.figure.Figure:
    """Returns the gaps as a heat map: arms by settings, in points; the colours end at 10 below and above."""
    settings = list(found[reference])
    names = sorted(found, key=lambda name: -worst_gap(found[name], found[reference]))
    gaps = [
        [
            100 * (found[name][setting].accuracy - found[reference][setting].accuracy)
            if setting in found[name]
            else float("nan")
            for setting in settings
        ]
        for name in names
    ]
    with style.settings():
        figure = style.new_figure(5.0 + 1.25 * len(settings), 1.8 + 0.3 * len(names))
        axis = figure.subplots()
        # From dark to light, so that below and above the reference differ in grey as well.
        image = axis.imshow(gaps, aspect="auto", cmap="cividis", vmin=-_LARGEST, vmax=_LARGEST)
        axis.set_yticks(range(len(names)), names, fontsize=11)
        axis.set_xticks(range(len(settings)), [_setting(*setting) for setting in settings], fontsize=11)
        for y, line in enumerate(gaps):
            for x, gap in enumerate(line):
                if gap == gap:
                    colour = "white" if gap < 0 else "black"
                    axis.text(x, y, f"{gap:+.1f}", ha="center", va="center", fontsize=10, color=colour)
        known = [gap for line in gaps for gap in line if gap == gap]
        low, high = min(known) < -_LARGEST, max(known) > _LARGEST
        extend = "both" if low and high else "min" if low else "max" if high else "neither"
        label = f"test accuracy minus that of {reference}, points"
        figure.colorbar(image, label=label, extend=extend, pad=0.02)
    return figure


def _setting(name: str, batch_size: int) -> str:
    return f"{name.replace('_', chr(10))}\nbatch\n{batch_size:,}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m tf_largebatch.study.gaps", description=__doc__)
    parser.add_argument("directories", nargs="+", type=pathlib.Path, help="directories of studies")
    parser.add_argument("--reference", required=True, help="the arm to compare with")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="where to write gaps.md and gaps.png")
    given = parser.parse_args(arguments)
    try:
        found = reached(given.directories)
        require(given.reference in found, "reference", given.reference, f"an arm with final runs: {', '.join(found)}")
        with replacing(given.output / "gaps.md") as temporary:
            temporary.write_text(markdown(found, given.reference))
        style.save(picture(found, given.reference), given.output / "gaps.png")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
