"""The commands that the pages show exist: modules, flags and make targets. What they print is tested elsewhere.

No backend: it reads the pages, and starts those of the command line in processes of their own.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tf_largebatch import batch_size
from tf_largebatch.evaluate import DATA_FLAGS
from tf_largebatch.train.command_line import config_from_flags, define_flags
from tf_largebatch.train.config import FLAGS

ROOT = pathlib.Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/*.md", "*/README.md", "tf_largebatch/*/README.md")
PAGES = [page for pattern in PATTERNS for page in ROOT.glob(pattern)]
HELP = {"help", "helpshort", "helpfull"}
# Model Garden's own, defined in official/core/train_utils and its like.
GARDEN = {"experiment", "mode", "model_dir", "config_file", "params_override", "tpu", "tf_data_service"}


def commands(page: pathlib.Path) -> list[str]:
    """The lines of the page's fenced and inline code, those ending in a backslash joined with the next."""
    text = page.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [line for block in fenced for line in block.splitlines()] + inline


def flags_of_program(module: str) -> set[str]:
    """The flags that a program defines in its source or takes from the sections of `TrainConfig`."""
    if module == "tf_largebatch.train":
        return {*FLAGS, "config"}
    path = ROOT / pathlib.Path(*module.split("."))
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    defined = re.findall(r"""(?:DEFINE_\w+\(\s*["']|add_argument\(["']--)(\w+)["']""", source)
    shared = {"tf_largebatch.evaluate": DATA_FLAGS, "tf_largebatch.batch_size": batch_size.FLAGS}
    defined += shared.get(module, ())
    return set(defined) | (GARDEN if "garden" in module else set())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_programs_and_their_flags_exist(page):
    for command in commands(page):
        for module, arguments in re.findall(r"python -m ((?:tf_largebatch|benchmarks)[\w.]*)([^#\n]*)", command):
            path = ROOT / pathlib.Path(*module.split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), command
            known = flags_of_program(module) | HELP
            # What stands in quotes are values of a flag.
            given = set(re.findall(r"(?<![\w-])--(\w+)", re.sub(r"'[^']*'|\"[^\"]*\"", "", arguments)))
            negated = {name.removeprefix("no") for name in given - known}
            assert negated <= known, f"{command}: {sorted(given - known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_values_of_train_are_accepted(page):
    for command in commands(page):
        found = re.search(r"python -m tf_largebatch\.train(?![\w.])([^|;&`)]*)", command)
        # "..." and the like stand for what the reader puts there.
        if found is None or re.search(r"\.\.\.|[$<\"]|--help|--config", found[1]):
            continue
        flag_values = flags.FlagValues()
        define_flags(flag_values)
        assert flag_values(["train", *shlex.split(found[1], comments=True)]) == ["train"], command
        if not flag_values["resume"].value:
            config_from_flags(flag_values)


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for command in commands(page):
            for words in re.findall(r"(?:^|&& )make((?: [a-z][\w-]*)+)(?=\s|$)", command):
                assert set(words.split()) <= targets, f"{page.name}: {command}"


def test_the_pages_have_commands():
    """So that a change of the pages' form cannot make the tests above pass for want of anything to check."""
    found = [command for page in PAGES for command in commands(page)]
    assert sum("python -m tf_largebatch.train" in command for command in found) > 5
    assert sum(command.startswith("make ") for command in found) > 5


SHORTER = {
    "tf_largebatch.train --dataset=folder": "--epochs=1 --batch_size=8",
    "tf_largebatch.train --optimizer=$optimizer": "--epochs=1",
}


@pytest.mark.long
def test_the_commands_for_ones_own_images_run_one_after_the_other(tmp_path):
    """Every block of docs/command_line.md from "Your own images" on, in the page's order, but with one epoch."""
    numbers = np.random.default_rng(0).integers(0, 256, (16, 96, 96, 3), np.uint8)
    for number, pixels in enumerate(numbers):
        for folder in (f"photos/train/class_{number % 2}", f"photos/validation/class_{number % 2}", "new_photos"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    text = (ROOT / "docs" / "command_line.md").read_text().partition("## Your own images")[2]
    blocks = [block for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "python" in block]
    assert len(blocks) == 4
    for block in blocks:
        for command, flag in SHORTER.items():
            block = block.replace(command, f"{command} {flag}")
        script = f'set -e\npython() {{ {shlex.quote(sys.executable)} "$@"; }}\n{block}'
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        found = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, (block, found.stderr[-1000:])
    written = ("predictions.csv", "runs/photos/evaluation/evaluation.json", "runs/again/final.keras", "both.png")
    assert [path for path in written if not (tmp_path / path).is_file()] == []
