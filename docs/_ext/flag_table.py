"""The directives `flag-table`, `optimizer-defaults` and `recipe-defaults`.

They list the command line's flags, its optimizers' defaults, and the defaults of CLARS, LARS and their schedule, whose
numbers signatures show as well.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

SECTIONS = {
    "data": "Data",
    "model": "Network",
    "optimizer": "Optimizer and learning rate",
    "adversarial": "Adversarial training",
    "run": "Run",
}


def flag_rows() -> list[str]:
    """Returns a table for each section of `TrainConfig`: flag, default, help with choices."""
    from tf_largebatch.train.config import FLAGS

    rows = []
    for section, title in SECTIONS.items():
        rows += [f"**{title}**", "", "| flag | default | |", "|---|---|---|"]
        for one in FLAGS.values():
            if one.section == section:
                choices = ", ".join(f"`{choice}`" for choice in one.choices or ())
                default = "" if one.default is None else f"`{_said(one.default)}`"
                text = re.sub(r"--\w+(=\w+)?", r"`\g<0>`", one.help).replace("|", r"\|")
                text = text.replace("by optimizer, written to config.json", "[by optimizer](#defaults-by-optimizer)")
                rows.append(f"| `--{one.name}` | {default} | {text}{f' One of {choices}.' if choices else ''} |")
        rows.append("")
    return rows


def default_rows() -> list[str]:
    """Returns a row for each set of defaults of an optimizer."""
    from tf_largebatch.train.optimizers import OPTIMIZERS, OTHER_DEFAULTS

    named = {}
    for name, row in OPTIMIZERS.items():
        if row.defaults is not OTHER_DEFAULTS:
            named[name] = row.defaults
            named.update({f"{name} on {dataset}": found for dataset, found in row.defaults_of.items()})
    fields = [field.name for field in dataclasses.fields(OTHER_DEFAULTS)]
    rows = [f"| optimizer | {' | '.join(f'`{name}`' for name in fields)} |", "|---|" + "---|" * len(fields)]
    for who, found in {**named, "any other": OTHER_DEFAULTS}.items():
        values = [getattr(found, name) for name in fields]
        rows.append(f"| {who} | {' | '.join('' if value is None else _said(value) for value in values)} |")
    return rows


def recipe_rows() -> list[str]:
    """Returns a row for each default of `CLARS`, `LARS` and `large_batch_schedule`."""
    from tf_largebatch.core import defaults

    clars, lars = dataclasses.asdict(defaults.CLARS), dataclasses.asdict(defaults.LARS)
    rows = ["| | `CLARS` | `LARS` |", "|---|---|---|"]
    said = {"learning_rate": "`learning_rate` without a schedule"}
    for name in clars:
        values = ["" if name not in one else "none" if one[name] is None else _said(one[name]) for one in (clars, lars)]
        rows.append(f"| {said.get(name, f'`{name}`')} | {values[0]} | {values[1]} |")
    both = {
        "peak of `large_batch_schedule`": defaults.PEAK_LEARNING_RATE,
        "its `power`": defaults.POWER,
        "its `end_learning_rate`": defaults.END_LEARNING_RATE,
        "weight decay": defaults.WEIGHT_DECAY_RATE,
    }
    return rows + [f"| {name} | {_said(value)} | {_said(value)} |" for name, value in both.items()]


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


class _Table(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        """Returns the parsed table."""
        node = nodes.container()
        self.state.nested_parse(StringList(self.rows(), source="tf_largebatch.train"), self.content_offset, node)
        return node.children

    def rows(self) -> list[str]:
        """Returns lines of Markdown."""
        raise NotImplementedError


class FlagTable(_Table):
    """Inserts the tables of all flags."""

    def rows(self) -> list[str]:
        """Returns lines of Markdown."""
        return flag_rows()


class OptimizerDefaultsTable(_Table):
    """Inserts the table of the optimizers' defaults."""

    def rows(self) -> list[str]:
        """Returns lines of Markdown."""
        return default_rows()


class RecipeDefaultsTable(_Table):
    """Inserts the table of the recipe's defaults."""

    def rows(self) -> list[str]:
        """Returns lines of Markdown."""
        return recipe_rows()


def numbers_of_defaults(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Puts the numbers of `core/defaults.py` in place of their names in a signature."""
    from tf_largebatch.core import defaults

    del app, what, name, thing, options

    def value(found: re.Match[str]) -> str:
        return repr(operator.attrgetter(found[1])(defaults))

    return re.sub(r"\bdefaults\.([\w.]+)", value, signature or "") or signature, returned


def setup(app: Any) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("flag-table", FlagTable)
    app.add_directive("optimizer-defaults", OptimizerDefaultsTable)
    app.add_directive("recipe-defaults", RecipeDefaultsTable)
    app.connect("autodoc-process-signature", numbers_of_defaults)
    return {"parallel_read_safe": True}
