"""The YAML files of official_configs/, and what the header of each says."""

from __future__ import annotations

import pathlib
import re

import yaml

CONFIGS = pathlib.Path(__file__).parents[2] / "official_configs"
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))


def text_of(path):
    return (CONFIGS / path).read_text()


def content_of(path):
    return yaml.safe_load(text_of(path))


def experiment_of(path):
    return re.search(r"--experiment=(\w+)", text_of(path))[1]


def header_of(path):
    """The title, and the entries `Key: text` by key, each with its continuation lines."""
    title, *lines = [line[2:] for line in text_of(path).splitlines() if line.startswith("#")]
    entries, key = {}, None
    for line in lines:
        found = re.match(r"(\w+): +(.*)", line)
        if found:
            key, entries[found[1]] = found[1], found[2]
        elif key and line.startswith("  "):
            entries[key] += " " + line.strip()
        else:
            key = None
    return title, entries
