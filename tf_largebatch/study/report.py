"""Tables of a study: one CSV row a run, the learning curves, and the comparison in Markdown."""

from __future__ import annotations

import csv
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tf_largebatch.files import replacing
from tf_largebatch.study.config import Arm, Study
from tf_largebatch.study.jobs import best_job

Rows = Sequence[Mapping[str, Any]]
# What `FinalMeasures` adds to the rows of final runs, and what tables call it.
MEASURES = {
    "train_accuracy": "training accuracy",
    "robust_accuracy_1_step": "after 1 step",
    "robust_accuracy_10_steps": "after 10 steps",
    "sharpness": "sharpness",
}


def write_report(study: Study, rows: Rows, directory: str | os.PathLike[str]) -> None:
    """Writes `runs.csv`, `curves.csv` and `table.md` of the runs done so far."""
    directory = pathlib.Path(directory)
    hyper_parameters = sorted({name for row in rows for name in row["point"]})
    columns = (
        "arm",
        "batch_size",
        "phase",
        "trial",
        "seed",
        "status",
        "validation_accuracy",
        "best_validation_accuracy",
    )
    measures = [name for name in MEASURES if any(name in row for row in rows)]
    last = ("test_accuracy", *measures, "seconds_per_update", "seconds", "backend", "device")
    with replacing(directory / "runs.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *last, *hyper_parameters])
        for row in rows:
            point = [row["point"].get(name, "") for name in hyper_parameters]
            writer.writerow([*(row[name] for name in columns), *(row.get(name, "") for name in last), *point])
    with replacing(directory / "curves.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "batch_size", "phase", "trial", "seed", "update", "loss", "validation_accuracy"])
        for row in rows:
            identity = [row[name] for name in ("arm", "batch_size", "phase", "trial", "seed")]
            writer.writerows([*identity, *point] for point in row["curve"])
    with replacing(directory / "table.md") as temporary:
        temporary.write_text(markdown(study, rows))


def summary(study: Study, arm: Arm, batch_size: int, rows: Rows) -> dict[str, Any] | None:
    """Returns what an arm reached at a batch size; None before its search is complete.

    Returns:
        `point` and `validation_accuracy` of the best trial, `trains` (share of the trials with a validation accuracy
        of `trains_at` or more), and of the final runs `test` (their accuracies), `first_eighth` (mean validation
        accuracy after an eighth of the updates), `updates_to` (for each target the median of the updates needed, None
        unless all seeds reach it), `seconds_per_update` (median), `at_cap` (mean share of the rates at the cap, None
        without a cap) and `measures` (means of what `FinalMeasures` found, by name).
    """
    best = best_job(study, arm.name, batch_size, rows)
    if best is None:
        return None
    mine = [row for row in rows if row["arm"] == arm.name and row["batch_size"] == batch_size]
    search, final = ([row for row in mine if row["phase"] == phase] for phase in ("search", "final"))
    at_cap = [share for row in final for share in row.get("at_cap", ())]
    measured = {name: [row[name] for row in final if row.get(name) is not None] for name in MEASURES}
    eighth = [_accuracy_after(row, study.updates / 8) for row in final]
    return {
        "point": best["point"],
        "validation_accuracy": best["validation_accuracy"],
        "trains": statistics.mean(row["validation_accuracy"] >= study.trains_at for row in search),
        "test": [row["test_accuracy"] for row in final],
        "first_eighth": statistics.mean(eighth) if eighth else None,
        "updates_to": {target: _median_updates(final, target) for target in study.targets},
        "seconds_per_update": statistics.median(row["seconds_per_update"] for row in mine),
        "at_cap": statistics.mean(at_cap) if at_cap else None,
        "measures": {name: statistics.mean(values) for name, values in measured.items() if values},
    }


def markdown(study: Study, rows: Rows) -> str:
    """Returns the comparison as a Markdown table a batch size, and what was not run."""
    lines = [
        f"# {study.name}",
        "",
        f"{study.dataset}, {study.model}, {study.updates} updates, {study.trials} trials an arm. The best "
        f"by validation accuracy is trained again with {len(study.final_seeds)} new seeds and then tested.",
        "",
        "Test accuracy: mean (standard deviation). Trains: share of the trials with a validation accuracy of "
        f"{study.trains_at:g} or more.",
    ]
    for batch_size in study.batch_sizes:
        found = [(arm, summary(study, arm, batch_size, rows)) for arm in study.arms]
        lines += ["", f"## Batch {batch_size}", ""]
        header = ["arm", "test accuracy", "seeds", "best validation", "after 1/8", "trains"]
        known = [(arm, values) for arm, values in found if values is not None]
        measures = [name for name in MEASURES if any(name in values["measures"] for _, values in known)]
        header += [MEASURES[name] for name in measures]
        header += [f"updates to {target:g}" for target in study.targets]
        capped = any(values["at_cap"] is not None for _, values in known)
        header += [*(["at the cap"] if capped else []), "ms an update", "best point"]
        lines += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for arm, values in sorted(known, key=lambda pair: -_mean(pair[1]["test"])):
            lines.append(f"| {' | '.join(_cells(study, arm, values, measures, capped))} |")
        missing = [arm.name for arm, values in found if values is None or len(values["test"]) < len(study.final_seeds)]
        if missing:
            lines += ["", f"Not complete: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _cells(study: Study, arm: Arm, values: Mapping[str, Any], measures: Sequence[str], capped: bool) -> list[str]:
    test = values["test"]
    spread = f" ({statistics.stdev(test):.4f})" if len(test) > 1 else ""
    point = ", ".join(f"{name} {_short(values['point'][name])}" for name in arm.space)
    return [
        arm.name,
        f"{_mean(test):.4f}{spread}" if test else "",
        str(len(test)),
        f"{values['validation_accuracy']:.4f}",
        "" if values["first_eighth"] is None else f"{values['first_eighth']:.4f}",
        f"{values['trains']:.2f}",
        *(f"{values['measures'][name]:.4g}" if name in values["measures"] else "" for name in measures),
        *("not reached" if n is None else f"{n:g}" for n in values["updates_to"].values()),
        *(["" if values["at_cap"] is None else f"{values['at_cap']:.2f}"] if capped else []),
        f"{1000 * values['seconds_per_update']:.0f}",
        point,
    ]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else 0.0


def _accuracy_after(row: Mapping[str, Any], updates: float) -> float:
    """Returns the validation accuracy at the first evaluation after so many updates."""
    later = [accuracy for update, _, accuracy in row["curve"] if update >= updates]
    return later[0] if later else 0.0


def _median_updates(rows: Rows, target: float) -> float | None:
    """Returns the median of the updates that the runs needed to reach the validation accuracy.

    It is None unless all reached it.
    """
    needed = [next((u for u, _, accuracy in row["curve"] if accuracy >= target), None) for row in rows]
    return None if not needed or None in needed else statistics.median(n for n in needed if n is not None)
