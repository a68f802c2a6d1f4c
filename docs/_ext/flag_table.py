"""The directives `flag-table`, every flag of the command line, and `optimizer-defaults`, from `train_config`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def flag_rows() -> list[str]:
    """A row for each argument of `TrainConfig`, in its order: flag with choices, default, help."""
    from tf_largebatch.train.config import TrainConfig

    rows = ["| flag | default | |", "|---|---|---|"]
    for field in dataclasses.fields(TrainConfig):
        choices = ", ".join(f"`{choice}`" for choice in field.metadata["choices"] or ())
        default = "" if field.default is None else f"`{_said(field.default)}`"
        text = re.sub(r"--\w+(=\w+)?", r"`\g<0>`", field.metadata["help"]).replace("|", r"\|")
        text = text.replace("see train_config.DEFAULTS", "[see below](#defaults-by-optimizer)")
        rows.append(f"| `--{field.name}` | {default} | {text}{f' One of {choices}.' if choices else ''} |")
    return rows


def default_rows() -> list[str]:
    """A row for each entry of `train_config.DEFAULTS`."""
    from tf_largebatch.train.config import DEFAULTS, OTHER_DEFAULTS

    names = [field.name for field in dataclasses.fields(OTHER_DEFAULTS)]
    rows = [f"| optimizer | {' | '.join(f'`{name}`' for name in names)} |", "|---|" + "---|" * len(names)]
    for key, found in {**DEFAULTS, "any other": OTHER_DEFAULTS}.items():
        who = key if isinstance(key, str) else f"{key[0]} on {key[1]}"
        values = [getattr(found, name) for name in names]
        rows.append(f"| {who} | {' | '.join('' if value is None else _said(value) for value in values)} |")
    return rows


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


class _Table(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        """The parsed table."""
        node = nodes.container()
        self.state.nested_parse(StringList(self.rows(), source="train_config"), self.content_offset, node)
        return node.children

    def rows(self) -> list[str]:
        """Lines of Markdown."""
        raise NotImplementedError


class FlagTable(_Table):
    """Inserts `flag_rows`."""

    def rows(self) -> list[str]:
        """All flags."""
        return flag_rows()


class OptimizerDefaultsTable(_Table):
    """Inserts `default_rows`."""

    def rows(self) -> list[str]:
        """All defaults."""
        return default_rows()


def setup(app: Any) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("flag-table", FlagTable)
    app.add_directive("optimizer-defaults", OptimizerDefaultsTable)
    return {"parallel_read_safe": True}
