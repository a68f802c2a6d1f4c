"""The wheel and the source distribution: what is in them, and that they work outside the checkout.

No backend: it builds the package.
"""

from __future__ import annotations

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

import build_distributions
import pytest

import tf_largebatch

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = pathlib.Path(__file__).with_name("smoke.py")
TOP_LEVEL = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml", "setup.py")


def run(*command, **options):
    found = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def copy_of_the_checkout(source):
    """What a build reads, and a test, which it must leave out."""
    shutil.copytree(ROOT / "tf_largebatch", source / "tf_largebatch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*TOP_LEVEL, "MANIFEST.in"):
        shutil.copyfile(ROOT / name, source / name)
    (source / "tests").mkdir()
    shutil.copy(__file__, source / "tests")
    return source


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(wheel, sdist), built as `make dist` does from a copy: building writes into the directory it builds."""
    directory = tmp_path_factory.mktemp("distributions")
    source = copy_of_the_checkout(directory / "source")
    # Without isolation, which would fetch setuptools from the network.
    return build_distributions.build(source, directory, "--no-isolation")


def files_of_the_package():
    found = [
        *ROOT.glob("tf_largebatch/**/*.py"),
        ROOT / "tf_largebatch/py.typed",
        *ROOT.glob("tf_largebatch/*/README.md"),
    ]
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_wheel_holds_the_package_its_marker_and_the_licence_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = set(wheel.namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == files_of_the_package()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_builds_the_same_and_says_how_to_use_and_cite_it(distributions):
    with tarfile.open(distributions[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert set(TOP_LEVEL) | files_of_the_package() <= names
    assert not [name for name in names if re.match("tests|results|benchmarks|docs|colab", name)]


def test_nothing_but_source_and_text_is_distributed(distributions):
    """No data set, no result, no path of the machine that built it."""
    suffixes = {".py", ".md", ".typed", ".cff", ".toml", ".cfg", ".txt", ".in", ""}
    private = re.compile(rb"/home/|/root/|/Users/|\\Users\\|" + re.escape(str(ROOT).encode()))
    for name, content in contents(distributions).items():
        assert pathlib.PurePath(name).suffix in suffixes, name
        assert len(content) < 100_000, f"{name} has {len(content):,} bytes"
        content.decode("utf-8")
        assert not private.search(content), f"{name}: {private.search(content)[0].decode()}"


def contents(distributions):
    """The content of every file of the wheel and of the source distribution."""
    with zipfile.ZipFile(distributions[0]) as wheel:
        found = {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(distributions[1]) as sdist:
        found |= {entry.name: sdist.extractfile(entry).read() for entry in sdist if entry.isfile()}
    return found


def test_the_files_have_one_date_and_no_owner(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        assert {entry.external_attr >> 16 for entry in wheel.infolist()} == {0o100644}
        assert len({entry.date_time for entry in wheel.infolist()}) == 1
    with tarfile.open(distributions[1]) as sdist:
        assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in sdist} == {(0, 0, "", "")}
        assert len({entry.mtime for entry in sdist}) == 1


@pytest.mark.long
def test_two_builds_have_the_same_bytes(tmp_path, monkeypatch):
    """At another time, in another directory, by a user whose files only they may read."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    built = []
    for directory, mask in (("here", 0o022), ("elsewhere/deeper", 0o077)):
        before = os.umask(mask)
        try:
            source = copy_of_the_checkout(tmp_path / directory)
            built.append(build_distributions.build(source, tmp_path / directory / "dist", "--no-isolation"))
        finally:
            os.umask(before)
        time.sleep(2)  # a zip file counts in steps of two seconds
    for one, other in zip(*built, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes(), one.name


def test_the_metadata_names_version_python_and_extras(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == tf_largebatch.__version__
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.13"}
    assert {"dev", "docs", "garden", "jax", "notebooks", "tensorflow", "tpu"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["License"] == "Apache-2.0" or metadata["License-Expression"] == "Apache-2.0"


def test_the_version_is_written_in_one_place():
    assigned = re.compile(rf"""version\w*\W+["']?{re.escape(tf_largebatch.__version__)}\b""", re.IGNORECASE)
    places = [ROOT / name for name in ("setup.py", "pyproject.toml", "CITATION.cff", "README.md", "Makefile")]
    places += [*ROOT.glob("tf_largebatch/**/*.py"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.py")]
    assert [path.name for path in places if assigned.search(path.read_text())] == ["version.py"]


@pytest.mark.long
def test_the_wheel_works_outside_the_checkout(distributions, tmp_path):
    with zipfile.ZipFile(distributions[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    printed = run(
        sys.executable,
        SMOKE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
    )
    assert printed.split()[-2:] == [str(tmp_path / "site" / "tf_largebatch"), tf_largebatch.__version__]


def test_without_an_extra_neither_tensorflow_nor_jax_is_required(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        required = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist")
    plain = {re.match(r"[\w-]+", entry)[0] for entry in required if "extra ==" not in entry}
    assert "keras" in plain and not plain & {"tensorflow", "tensorflow-datasets", "jax"}


@pytest.mark.long
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_wheel_installs_into_a_clean_environment(backend, distributions, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{distributions[0]}[{backend}]")
    printed = run(python, SMOKE, cwd=tmp_path)
    assert str(tmp_path / "venv") in printed
    trained = run(python, "-m", "tf_largebatch.train", "--epochs=1", "--output_dir=run", "--verbose=0", cwd=tmp_path)
    assert "test accuracy" in trained and (tmp_path / "run" / "curves.png").exists()
