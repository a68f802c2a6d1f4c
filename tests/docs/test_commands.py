"""The commands that the pages show exist: modules, flags and make targets. What they print is tested elsewhere.

No backend: it reads the pages.
"""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest
from absl import flags

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
