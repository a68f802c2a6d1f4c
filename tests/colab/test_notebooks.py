"""The notebooks run from top to bottom in SMALL mode, and stand in the repository without outputs.

TensorFlow only: it starts the notebooks in processes of their own, on either backend.
"""

from __future__ import annotations

import base64
import os
import pathlib
import re

import pytest
from notebooks import COLAB, GARDEN, execute_small, pictures, printed, read, tagged
from selection import long_unless

ROOT = COLAB.parent
NAMES = sorted(path.name for path in COLAB.glob("*.ipynb"))
# name -> what it prints, pictures at least
SHOWN = {
    "clars_in_five_minutes.ipynb": (
        r"clars: accuracy 0\.\d+ after \d+ updates(.|\n)*CLARS, no warmup +\d+ +0\.\d+\n$",
        1,
    ),
    "conadv.ipynb": (
        r"largest change \d+(.|\n)*concurrent .*: \d+ ms a step(.|\n)*adversarial images( +[01]\.\d+){4}\n$",
        3,
    ),
    "what_batch_size.ipynb": (
        r"the noise scale after \d+ epochs is (\d+|inf)\n(.|\n)*the two updates \d+\.\d% of that apart"
        r"(.|\n)*(<- try this one|No epoch has)(.|\n)*$",
        1,
    ),
}


RUNS = [(name, backend) for name in NAMES if name != GARDEN for backend in ("tensorflow", "jax")]


@pytest.mark.parametrize("run", long_unless(RUNS, [("what_batch_size.ipynb", "tensorflow")]), ids=" on ".join)
def test_a_notebook_runs_in_small_mode(run, tmp_path):
    name, backend = run
    notebook = execute_small(name, tmp_path, backend)
    said, shown = SHOWN[name]
    assert re.search(said, printed(notebook)), printed(notebook)
    assert len(pictures(notebook)) >= shown
    # To look at them: KEEP_PICTURES=directory.
    if keep := os.environ.get("KEEP_PICTURES"):
        for number, picture in enumerate(pictures(notebook)):
            pathlib.Path(keep, f"{name}.{backend}.{number}.png").write_bytes(base64.b64decode(picture))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs(name):
    for cell in read(COLAB / name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_installs_first_then_names_its_sizes(name):
    notebook = read(COLAB / name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0] == tagged(notebook, "install") and code[1] == tagged(notebook, "parameters")
    assert code[0].source == tagged(read(COLAB / NAMES[0]), "install").source or name == GARDEN
    assert 'REPOSITORY = "https://github.com/OWNER/tf_largebatch"' in code[0].source
    assert "SMALL = False" in code[1].source


def test_every_notebook_is_listed_and_every_badge_leads_to_one():
    listed = set(re.findall(r"`(\w+\.ipynb)`", (ROOT / "docs" / "notebooks.md").read_text()))
    assert listed == set(NAMES)
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for path in re.findall(r"\bcolab/\w+\.ipynb", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
