"""`make test-oldest` tests what setup.py promises, no newer versions.

No backend: it reads setup.py and the Makefile.
"""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
SETUP = (ROOT / "setup.py").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_oldest_versions_tested_are_the_oldest_allowed():
    (pins,) = re.findall(r"^OLDEST := (.*)$", MAKEFILE, re.MULTILINE)
    for name, version in (pin.split("==") for pin in pins.split()):
        (floor,) = re.findall(rf'"{name}>=([\d.]+)"', SETUP)
        assert (version + ".0").startswith(floor + "."), f"{name}: {version} is tested, {floor} is allowed"


def test_the_oldest_python_tested_is_the_oldest_allowed():
    (floor,) = re.findall(r'python_requires=">=([\d.]+)', SETUP)
    assert f"OLDEST_PYTHON ?= python{floor}\n" in MAKEFILE
