"""The documentation site: it builds without a warning, needs nothing from elsewhere, and leaves no public name out.

No backend: it builds the documentation.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

from tf_largebatch import norms
from tf_largebatch.train import run_directory
from tf_largebatch.train.config import FLAGS

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import config_table  # noqa: E402  (found on the path set above)
import layer_table  # noqa: E402  (found on the path set above)
import mathml  # noqa: E402  (found on the path set above)
import measured_tables  # noqa: E402  (found on the path set above)
from markdown_docstrings import to_rst  # noqa: E402  (found on the path set above)
from public_api import MODULES, exported, own_names  # noqa: E402  (found on the path set above)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages by their paths."""
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        out / "doctrees",
        ROOT / "docs",
        out / "html",
    ]
    found = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return {path.relative_to(out / "html").as_posix(): path.read_text() for path in out.glob("html/**/*.html")}


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(https?:)?//""")
    assert [path for path, page in site.items() if loaded.search(page)] == []


def test_equations_are_mathml_and_need_no_script(site):
    for page, equations in (("methods.html", 9), ("conadv.html", 5), ("choosing.html", 2)):
        assert site[page].count('<div class="math-block"><math xmlns=') >= equations
    assert not [path for path, page in site.items() if "mathjax" in page.lower()]


@pytest.mark.parametrize(
    ("latex", "found"),
    [
        (r"\lVert w_k \rVert", '<mo form="prefix" stretchy="false">‖</mo><msub><mi>w</mi><mi>k</mi></msub>'),
        (r"\mathrm{rate}_k", "<mi>rate</mi>"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
        (r"x \le y", "<mo>≤</mo>"),
    ],
)
def test_latex_becomes_mathml(latex, found):
    assert found in mathml.mathml(latex) and "&amp;" not in mathml.mathml(latex)


def test_an_unknown_command_is_refused():
    with pytest.raises(ValueError, match=r"received \\unknown\."):
        mathml.mathml(r"a \unknown b")


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference_and_on_the_page_of_all_names(site, module):
    described = "".join(page for path, page in site.items() if path.startswith("api/"))
    for name in own_names(module):
        assert described.count(f'id="{module}.{name}"') == 1, f"add {module}.{name} to a page in docs/api"
        assert re.search(rf'href="\w+\.html#{re.escape(module)}\.{name}"', site["api/names.html"]), name


def lists_of_names():
    """`{module: its __all__}` of every package, from the source."""
    for path in sorted((ROOT / "tf_largebatch").rglob("__init__.py")):
        assigned = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
        for node in assigned:
            if [target.id for target in node.targets] == ["__all__"]:
                yield ".".join(path.parent.relative_to(ROOT).parts), ast.literal_eval(node.value)


def test_no_package_has_public_names_without_a_page(site):
    for module, names in lists_of_names():
        from_source = [name for name in names if f'id="{module}.{name}"' in site["api/model_garden.html"]]
        elsewhere = set(exported("tf_largebatch")) | set(from_source)
        missing = set() if module in MODULES else set(names) - elsewhere
        assert not missing, f"{module}: add it to MODULES in docs/_ext/public_api.py, or document {sorted(missing)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_public_name_and_method_has_a_docstring(module):
    for name in exported(module):
        thing = getattr(importlib.import_module(module), name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        assert inspect.getdoc(thing) and thing.__doc__, name
        if inspect.isclass(thing) and thing.__module__.startswith("tf_largebatch"):
            methods = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
            undocumented = [
                key
                for key, value in methods.items()
                if (inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod))
                and not inspect.getdoc(getattr(thing, key))
            ]
            assert not undocumented, f"{name}: {undocumented}"


def test_every_layer_with_a_rule_is_in_the_table(site):
    for layer_class in norms.KERAS.layer_classes():
        assert f">{layer_class.__name__}<" in site["layers.html"], layer_class.__name__
    assert layer_table.table()[1] == []


def test_names_of_layers_are_expanded():
    assert layer_table.expanded("Conv1DTranspose, 2D, 3D") == {f"Conv{n}DTranspose" for n in (1, 2, 3)}
    assert layer_table.expanded("Dense") == {"Dense"}


def test_every_benchmark_is_in_the_tables(site):
    for path in (ROOT / "benchmarks" / "reports").glob("*.json"):
        assert f">benchmarks.{path.stem}<" in site["measured.html"]


def test_every_run_is_shown(site):
    for picture in (ROOT / "results").rglob("curves.png"):
        assert f">{picture.parent.relative_to(ROOT / 'results').as_posix()}<" in site["measured.html"]


def test_what_cannot_be_imported_here_is_documented_from_its_source(site):
    for name in ("tf_keras.optimizers.CLARS", "tf_keras.optimizers.LARS", "model_garden.configs.Recipe"):
        assert f'id="tf_largebatch.{name}"' in site["api/model_garden.html"]


def test_measurements_are_rendered_with_units_and_spread(tmp_path):
    (tmp_path / "speed.json").write_text(
        '{"environment": {"cores": 2}, "cases": {"a": {"plain_seconds": 0.5, "ratio": 1.25, "ratio_quartiles": '
        '[1.2, 1.3], "peak_bytes": 1610612736, "raw": [1, 2, 3, 4, 5], "norm_examples": null}}}'
    )
    (lines,) = measured_tables.sections(tmp_path)
    assert "cores 2." in lines
    assert lines[-4:-1] == [
        "|  | plain, ms | ratio | peak, GiB | norm examples |",
        "|---|---|---|---|---|",
        "| a | 500 | 1.25 (1.2 to 1.3) | 1.5 | all |",
    ]


def test_what_all_rows_share_is_said_once_and_parts_have_headings(tmp_path):
    rows = ", ".join(f'{{"batch": {batch}, "device": "a|b", "flops": {batch}e9}}' for batch in (1, 2, 4))
    (tmp_path / "some.json").write_text(f'{{"first_part": [{rows}], "second": {{"x": {{"ms": {{"read": 1.5}}}}}}}}')
    (lines,) = measured_tables.sections(tmp_path)
    assert lines[2:] == [
        "### First part",
        "",
        "In all rows: device a\\|b.",
        "",
        "| batch | flops |",
        "|---|---|",
        "| 1 | 1e+09 |",
        "| 2 | 2e+09 |",
        "| 4 | 4e+09 |",
        "",
        "### Second",
        "",
        "|  | read |",
        "|---|---|",
        "| ms | 1.5 |",
        "",
    ]


def test_a_program_without_numbers_is_named(tmp_path):
    (tmp_path / "run.py").write_text('flags.DEFINE_string("json", None, "Where to write the report.")\n')
    (tmp_path / "helper.py").write_text("import json\n")
    assert measured_tables.not_measured(tmp_path, tmp_path) == ["run"]
    (tmp_path / "run.json").write_text("{}")
    assert measured_tables.not_measured(tmp_path, tmp_path) == []


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        ("Takes `x` and\n`||w||`.", "Takes ``x`` and\n``||w||``."),
        ("The norm ||w|| of w_ is *not* a * b.", "The norm \\|\\|w\\|\\| of w\\_ is *not* a \\* b."),
        ("Thus:\n\n    y = a * b\n\nEnd.", "Thus:\n\n.. code-block:: text\n\n    y = a * b\n\nEnd."),
        ("Two:\n\n    a\n\n    b", "Two:\n\n.. code-block:: text\n\n    a\n\n    b"),
        ("Args:\n    x: a `y`.\n\n    z: more.", "Args:\n    x: a ``y``.\n\n    z: more."),
        (">>> f(`x`)", ">>> f(`x`)"),
        ("+ ascends.", "\\+ ascends."),
        ("The `x`s.", "The ``x``\\ s."),
    ],
)
def test_docstrings_become_restructured_text(markdown, rst):
    assert "\n".join(to_rst(markdown.split("\n"))).rstrip("\n") == rst


def test_every_flag_is_on_the_page_of_the_command_line(site):
    for name in FLAGS:
        assert f">--{name}<" in site["command_line.html"], name


def test_every_file_of_a_run_is_on_the_page_of_the_command_line(site):
    for name in ("CONFIG", "METRICS", "LAYERWISE_RATES", "NOISE_SCALES", "CURVES", "PICTURES", "FINAL_MODEL", "RESULT"):
        assert f">{getattr(run_directory, name)}<" in site["command_line.html"], name


def test_every_configuration_is_listed_with_its_result(site):
    for path in (ROOT / "official_configs").rglob("*.yaml"):
        assert f">{path.relative_to(ROOT / 'official_configs').as_posix()}<" in site["model_garden.html"]


def test_the_header_of_a_configuration_is_read():
    text = "# What.\n#\n# Paper:     A\n#              and B\n# Here:      not run\n#\n# Free words: no.\ntask: {}\n"
    assert config_table.header(text) == ("What.", {"Paper": "A and B", "Here": "not run"})
