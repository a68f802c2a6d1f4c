"""The tables of results/README.md and README.md: what the arms of a study reached, from its runs.csv."""

from __future__ import annotations

import csv
import pathlib
import statistics
from collections.abc import Mapping, Sequence

RESULTS = pathlib.Path(__file__).parent.parent / "results"
Run = Mapping[str, str]


def runs_of(study: str) -> list[Run]:
    """Returns the rows of a study's runs.csv."""
    with (RESULTS / study / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def by_batch_size(study: str) -> str:
    """Returns test accuracies in percent, a line an arm and a column a batch size."""
    runs = runs_of(study)
    sizes = sorted({int(run["batch_size"]) for run in runs})
    rows = [[arm, *(_accuracy(_final(runs, arm, size)) for size in sizes)] for arm in _arms(runs)]
    return _table(["arm", *(f"batch {size:,}" for size in sizes)], rows)


def with_search(study: str, trains_at: float = 0.5) -> str:
    """Returns test accuracies at one batch size, the best arm first, and what the search found."""
    runs = runs_of(study)
    found = {arm: (_final(runs, arm), _search(runs, arm)) for arm in _arms(runs)}
    done = {arm: pair for arm, pair in found.items() if pair[0]}
    seeds = {len(final) for final, _ in done.values()}
    rows = []
    for arm in sorted(done, key=lambda arm: -statistics.mean(done[arm][0])):
        final, search = done[arm]
        share = statistics.mean(accuracy >= trains_at for accuracy in search)
        rows.append([arm, _accuracy(final), f"{max(search):.4f}", f"{100 * share:.0f} %"])
    header = f"test accuracy, %, {'/'.join(map(str, sorted(seeds)))} seeds (sd)"
    return _table(["arm", header, "best validation", f"trials above {100 * trains_at:g} %"], rows)


def overview() -> str:
    """Returns the table of README.md: four arms in three settings."""
    arms = {"CLARS": "clars", "LARS+w": "lars+w", "AdamW+w": "adamw+w", "SGD+w": "sgd+w"}
    settings = {
        "Fashion-MNIST, 14 px, batch 2,048, 96 updates, 5 seeds": ("fashion_mnist", 2048),
        "the same, batch 8,192": ("fashion_mnist", 8192),
        "CIFAR-10, ResNet-20, batch 4,096, 120 updates, 3 seeds": ("cifar10", 4096),
    }
    rows = []
    for setting, (study, size) in settings.items():
        runs = runs_of(study)
        rows.append([setting, *(_accuracy(_final(runs, arm, size)) for arm in arms.values())])
    return _table(["", *arms], rows)


# Line of the table of defaults -> arm in the studies.
DEFAULTS = {
    "Adam": "adam",
    "**CLARS, the recipe**": "clars 0.5/3/0.05 linear",
    "`max_agreement=0.1`": "clars 0.5/3/0.1 linear",
    "`max_agreement=None`": "clars 0.5/3 linear",
    "`eta=0.25, max_rate=1.0, max_agreement=None`": "clars 0.25/1 linear",
    "LARS, the recipe": "lars 0.03/1 linear",
    "CLARS, searched": "clars searched",
    "CLARS, searched with `max_agreement`": "clars searched with max_agreement",
    "LARS with warmup, searched": "lars+w searched",
}


def defaults(lines: Mapping[str, str] = DEFAULTS) -> str:
    """Returns what defaults and searched settings reach: a line an arm, a column a data set, network and batch size.

    Args:
        lines: Line of the table -> arm in the studies.
    """
    studies = {"digits": "digits", "fashion_mnist": "Fashion-MNIST", "lenet5": "LeNet-5"}
    header, columns = [""], []
    for study, name in studies.items():
        runs = runs_of(f"defaults/agreement/{study}")
        sizes = sorted({int(run["batch_size"]) for run in runs})
        columns += [(runs, size) for size in sizes]
        header += [f"{name} {sizes[0]:,}", *(f"{size:,}" for size in sizes[1:])]
    rows = [
        [line, *(f"{100 * statistics.mean(_final(runs, arm, size)):.1f}" for runs, size in columns)]
        for line, arm in lines.items()
    ]
    return _table(header, rows)


def recipe() -> str:
    """Returns the lines of `defaults` that stand in README.md."""
    shown = ("Adam", "**CLARS, the recipe**", "CLARS, searched", "LARS with warmup, searched")
    return defaults({line: DEFAULTS[line] for line in shown})


def _arms(runs: Sequence[Run]) -> list[str]:
    """Returns the arms, one with warmup after the same without."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    bases = list(dict.fromkeys(arm.removesuffix("+w") for arm in arms))
    return sorted(arms, key=lambda arm: (bases.index(arm.removesuffix("+w")), arm))


def _final(runs: Sequence[Run], arm: str, batch_size: int | None = None) -> list[float]:
    """Returns the test accuracies of an arm's final runs."""
    mine = [run for run in runs if run["arm"] == arm and run["phase"] == "final"]
    return [float(run["test_accuracy"]) for run in mine if batch_size in (None, int(run["batch_size"]))]


def _search(runs: Sequence[Run], arm: str) -> list[float]:
    """Returns the validation accuracies of an arm's search."""
    return [float(run["validation_accuracy"]) for run in runs if run["arm"] == arm and run["phase"] == "search"]


def _accuracy(values: Sequence[float]) -> str:
    """Returns the mean (standard deviation) in percent."""
    return f"{100 * statistics.mean(values):.1f} ({100 * statistics.stdev(values):.1f})" if values else "not run"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |".replace("|  |", "| |"), "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
