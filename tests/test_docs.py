"""The Python code in README files, documentation and docstrings runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import pathlib
import re
import subprocess
import sys

import keras
import pytest
from selection import long_unless

import tf_largebatch
from tf_largebatch import norms

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ["README.md", "tf_largebatch/norms/README.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))
BLOCK = re.compile(r"^(<!-- not run: .{10,} -->\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What else may be in a fence: output, commands, files, and directives that are not code.
NO_PYTHON = re.compile(r"(sh|yaml|text|csv|toctree|include|eval-rst|[a-z]+(-[a-z]+)+)?$")


def blocks_to_run(page):
    """The Python blocks of a page; those that cannot run here say so: `<!-- not run: why -->` stands above them."""
    return [code for not_run, code in BLOCK.findall((ROOT / page).read_text()) if not not_run]


@pytest.mark.parametrize("page", PAGES)
def test_no_python_of_a_page_is_left_out(page):
    text = (ROOT / page).read_text()
    for language in re.findall(r"^```\{?([^\s}]+)", text, re.MULTILINE):
        assert language == "python" or (NO_PYTHON.match(language) and language != "code-block"), language
    without_fences = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"\n\n((?:    [^\n]*\n)+)", without_fences):
        raise AssertionError(f"put it between fences: {block}")


WITH_CODE = [page for page in PAGES if blocks_to_run(page)]
# Their code trains several models, or one for long.
LONG = ("analysis", "batch_size", "choosing", "conadv", "index", "migration", "scale", "watching")
LONG = {f"docs/{name}.md" for name in LONG}


@pytest.mark.parametrize("page", long_unless(WITH_CODE, set(WITH_CODE) - LONG))
def test_code_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_to_run(page)
    if any("Strategy(" in block for block in blocks):
        # TensorFlow wants one strategy in a process (see `two_replicas` in conftest.py).
        found = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return
    before = set(norms.KERAS.layer_classes())
    namespace: dict = {}
    try:
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
    finally:
        for layer_class in set(norms.KERAS.layer_classes()) - before:
            norms.unregister(layer_class)


def modules():
    # What needs Model Garden or tf_keras runs in their environment: tests/model_garden/test_docstrings.py.
    package = ROOT / "tf_largebatch"
    paths = [path.relative_to(ROOT).with_suffix("").parts for path in sorted(package.rglob("*.py"))]
    found = [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths]
    elsewhere = ("tf_largebatch.model_garden", "tf_largebatch.tf_keras")
    # Importing a __main__ runs its program.
    return [name for name in found if not name.startswith(elsewhere) and not name.endswith("__main__")]


@pytest.mark.parametrize("module", modules())
def test_docstring_examples_run(module):
    if "jax" in module.split("."):
        pytest.importorskip("jax")
    if module == "tf_largebatch.distribute.fit" and keras.backend.backend() != "tensorflow":
        pytest.skip("it refuses every backend but TensorFlow when it is imported")
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_public_names_are_documented():
    for name in tf_largebatch.__all__:
        thing = getattr(tf_largebatch, name)
        assert isinstance(thing, str) or (thing.__doc__ and len(thing.__doc__) > 40), name


# A noun at the beginning makes no sentence: functions return, compute or do something.
NOUNS = {"The", "A", "An", "What", "Whether", "How", "Which", "All", "Some", "One", "Its", "Each"}
SECTIONS = {"Args:", "Attributes:", "Raises:", "Returns:", "Yields:", "Example:"}
# Summaries that begin with a noun and are sentences.
VERBS = re.compile(r"\b(add up|is|must|takes the place|has no|has a|see|keeps)\b")


def documented():
    """Every documented module, class and function of the package with its file."""
    for path in sorted((ROOT / "tf_largebatch").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", node


def lower_case_entries(docstring):
    """The entries of Args, Attributes and Raises that begin with a lower-case word; dtypes and symbols may."""
    section, found = None, []
    for line in docstring.splitlines():
        depth = len(line) - len(line.lstrip())
        if line.strip() in SECTIONS:
            section, margin = line.strip(), depth
        elif line.strip() and section and depth <= margin:
            section = None
        elif section in ("Args:", "Attributes:", "Raises:") and depth == margin + 4:
            entry = re.match(r"\s*[\w.*`, ]+?: (?!b?float|u?int|bool|tau\b)([a-z].*)", line)
            found += [line.strip()] if entry else []
    return found


def test_docstrings_have_one_style():
    wrong = []
    for place, node in documented():
        docstring = ast.get_docstring(node)
        summary = docstring.splitlines()[0]
        decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ())]
        if not summary.endswith((".", ":", "!")):
            wrong.append(f"{place}: the first line is no sentence: {summary}")
        if isinstance(node, ast.FunctionDef) and not any("property" in decorator for decorator in decorators):
            if summary.split()[0] in NOUNS and not VERBS.search(summary):
                wrong.append(f"{place}: the summary begins with a noun, not with what the function does: {summary}")
        if re.search(r"^\s*(args|arguments|parameters|returns|raises|yields):$", docstring, re.MULTILINE):
            wrong.append(f"{place}: Args:, Returns: and Raises: are written with a capital")
        wrong += [f"{place}: begin the entry with a capital: {entry}" for entry in lower_case_entries(docstring)]
    assert not wrong, "\n".join(wrong)


# The field's word for each thing stands in CONTRIBUTING; these were other words for the same, or say nothing.
OTHER_WORDS = {
    "tap": "recorder",
    "twin": "auxiliary batch norm",
    "lookahead": "pipeline",
    "look-ahead": "pipeline",
    "look_ahead": "pipeline",
    "blueprint": "rebuildable network",
    "sibling": "rebuildable network",
    "rival": "baseline",
    "pixels of 255": "in units of 1/255",
    "normalisation": "normalization",
    "nobody": "the subject",
    "anybody": "the subject",
    "somebody": "the subject",
    "likewise": "what it does",
}


def test_one_word_means_one_thing():
    pages = [
        path
        for room in ("tf_largebatch", "docs", "benchmarks", "official_configs", "colab")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".md", ".yaml", ".ipynb")
    ]
    wanted = re.compile(rf"\b({'|'.join(OTHER_WORDS)})s?\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: write {OTHER_WORDS[match[1].lower()]!r}, not {match[1]!r}"
        for path in pages
        for match in wanted.finditer(path.read_text())
    ]
    assert not found, "\n".join(found)
