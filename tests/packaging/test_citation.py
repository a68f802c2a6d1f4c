"""CITATION.cff has what the Citation File Format 1.2.0 demands, and names the papers of the methods.

No backend: it reads CITATION.cff.
"""

from __future__ import annotations

import pathlib
import re

import yaml

CITATION = yaml.safe_load((pathlib.Path(__file__).parents[2] / "CITATION.cff").read_text())
KINDS = {"article", "conference-paper"}


def test_what_the_format_demands_is_there():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["message"] and CITATION["title"] and CITATION["authors"]
    assert CITATION["type"] == "software" and CITATION["license"] == "Apache-2.0"
    for reference in CITATION["references"]:
        assert reference["type"] in KINDS and reference["title"] and isinstance(reference["year"], int)
        for author in reference["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})


def test_the_papers_are_named():
    said = " ".join(str(reference) for reference in CITATION["references"])
    assert {"2002.01576", "2106.00221", "1708.03888", "1812.06162"} <= set(re.findall(r"\d{4}\.\d{5}", said))
