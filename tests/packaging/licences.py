"""What is installed beside tf_largebatch, as JSON: version and licence of each distribution, and who asks for it.

python tests/packaging/licences.py EXTRA ...

Runs in any environment; only the standard library is used.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys

OSI = "License :: OSI Approved :: "
# Names that mean the same licence, so that a table has one row for it.
SAME = {
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",
    "BSD License": "BSD",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "GNU General Public License (GPL)": "GPL",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD-2-Clause License": "BSD-2-Clause",
}


def canonical(name: str) -> str:
    """The name of a distribution as an index knows it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence that a distribution states: an SPDX expression, a classifier, or the first line of its text."""
    if metadata.get("License-Expression"):
        return metadata["License-Expression"]
    named = [entry.removeprefix(OSI) for entry in metadata.get_all("Classifier") or [] if entry.startswith(OSI)]
    text = (metadata.get("License") or "").strip().splitlines()
    stated = named or text[:1]
    return "; ".join(SAME.get(name, name) for name in stated)[:80] or "not stated"


def direct(extras: set[str]) -> set[str]:
    """What tf_largebatch itself requires, with these extras."""
    found = set()
    for requirement in importlib.metadata.requires("tf_largebatch") or []:
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", requirement)
        if extra is None or extra[1] in extras:
            found.add(canonical(re.match(r"[\w.-]+", requirement)[0]))
    return found


def installed(extras: set[str]) -> dict[str, dict[str, object]]:
    """For each distribution: its version, its licence, and whether tf_largebatch asks for it or only a requirement."""
    required, found = direct(extras), {}
    for distribution in importlib.metadata.distributions():
        name = canonical(distribution.metadata["Name"])
        if name not in ("pip", "tf-largebatch"):
            stated = licence(distribution.metadata)
            found[name] = {"version": distribution.version, "licence": stated, "direct": name in required}
    return dict(sorted(found.items()))


if __name__ == "__main__":
    json.dump(installed(set(sys.argv[1:])), sys.stdout)
