"""The package as a whole: what importing it needs and does, and which module imports which.

No backend: it reads the package's modules.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

import tf_largebatch

ROOT = pathlib.Path(tf_largebatch.__file__).parent
# Files that share a name, and the job that they share.
SAME_JOB = {
    "adversary": "makes the adversarial images of a step, in Keras 3 and in Model Garden",
    "arguments": "what the arguments of a constructor may be: of the optimizers, of ConAdvModel",
    "backend": "what differs between Keras's backends: the files, and what ConAdv takes from them",
    "base": "what LARS and CLARS have in common, in either Keras",
    "clars": "the optimizer CLARS, in either Keras",
    "command_line": "a program's flags, messages and exit status",
    "config": "the arguments: of a run, of a study",
    "convolution": "norms of convolutions: the rules, and the kernels that compute them",
    "dense": "norms of dense layers, in either Keras",
    "generic": "norms of layers without a rule, in either Keras",
    "keras_internals": "what is private in Keras and relied on, in either Keras",
    "lars": "the optimizer LARS, in either Keras",
    "noise_scale": "the gradient noise scale: its equations, its averages, its callback",
    "normalization": "norms of normalization layers, in either Keras",
    "norms": "per-example gradient norms, in either Keras",
    "optimizers": "the optimizers, in either Keras and by their names on the command line",
    "pipeline": "the attack on the next batch beside the update, in either Keras",
    "plots": "pictures: of runs, of a study",
    "progress": "what a training run shows while it runs: the callback, and the program's line",
    "registry": "the table of rules, in either Keras",
    "report": "what a program prints and writes about its work",
    "rules": "the rules of layers, in either Keras and for Model Garden's layers",
    "schedules": "learning-rate schedules",
    "train": "the program that trains",
}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache  # each worker imports this file, and one of them reads the package
def trees():
    """The syntax trees of the modules, by name."""
    return {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def imported(module, node):
    """The modules of the package that one import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in trees()}
    assert not node.level, f"{module}: relative import"
    # `from package import name` imports a module if there is one of that name, else the package.
    named = {f"{node.module}.{alias.name}" for alias in node.names}
    return (named & trees().keys()) or ({node.module} & trees().keys())


@functools.cache
def imports_of(module):
    """The modules that are imported with this one, and those that it imports later or for its annotations alone."""
    early, late = set(), set()

    def visit(node, deferred):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                (late if deferred else early).update(imported(module, child))
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            annotations = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            visit(child, deferred or inside or annotations)

    visit(trees()[module], False)
    return early - {module}, late - early - {module}


def early_imports():
    return {module: imports_of(module)[0] for module in trees()}


def all_imports():
    return {module: set().union(*imports_of(module)) for module in trees()}


def cycles(graph):
    """The groups of nodes that reach each other (Tarjan's strongly connected components)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_no_modules_import_each_other():
    assert cycles(early_imports()) == []


def test_imports_inside_functions_close_no_cycle():
    assert cycles(all_imports()) == []


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"]]


def rooms_used_by(room):
    """The rooms that the modules of a room import, at any time."""
    targets = set().union(*(imports for m, imports in all_imports().items() if m.split(".")[1:2] == [room]))
    return {target.split(".")[1] for target in targets if "." in target} - {room}


def test_a_room_uses_no_room_above_it():
    # core/random_numbers.py takes the numbers of the backend in use.
    assert rooms_used_by("core") <= {"check", "backend"}
    assert rooms_used_by("files") <= {"check"}
    assert rooms_used_by("data") <= {"check", "files"}
    for room in {module.split(".")[1] for module in trees() if "." in module}:
        used = rooms_used_by(room)
        # Evaluating and predicting are programs on what the training program has left; another one begins such runs.
        programs = "evaluate", "predict", "batch_size"
        assert "train" not in used or room in programs, f"{room} imports the program"
        assert "tf_keras" not in used or room == "model_garden", f"{room} imports the other Keras"
        assert "model_garden" not in used, f"{room} imports the plug-in"


def test_files_of_one_name_do_one_job():
    # The backends' files are named after the job that they do for each.
    names = [module.split(".")[-1] for module in trees() if ".backend." not in module]
    repeated = {name for name in names if names.count(name) > 1} - {"__main__"}
    assert repeated <= set(SAME_JOB), "rename one of the files, or say here what job they share"


# Tests of what is no room of the package.
OTHER_TESTS = {"benchmarks", "colab", "docs", "jax", "packaging", "reliability", "tpu"}


def test_tests_mirror_the_package():
    tests = pathlib.Path(__file__).parent
    rooms = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")} - {"."}
    nowhere = {room for room in rooms if not (ROOT / room).is_dir() and room.split("/")[0] not in OTHER_TESTS}
    assert not nowhere, "the package has no such rooms: name the folders after those whose code they test"


# Imports the package, says what it brought in, and imports it anew where Keras says that it runs on another backend,
# which is not installed with the package.
IMPORTS_TWICE = """
import sys, tf_largebatch
print([m for m in ("tf_keras", "official") if m in sys.modules])
for name in [name for name in sys.modules if name.startswith("tf_largebatch")]:
    del sys.modules[name]
import keras
keras.backend.backend = lambda: "torch"
import tf_largebatch
"""


@pytest.fixture(scope="module")
def process() -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", IMPORTS_TWICE], capture_output=True, text=True, check=False)


def test_another_keras_backend_is_refused_in_one_sentence(process):
    assert process.returncode != 0
    assert "needs Keras on TensorFlow or JAX, and Keras runs on 'torch' here: set" in process.stderr.splitlines()[-1]


def test_importing_brings_in_neither_tf_keras_nor_model_garden(process):
    assert process.stdout.strip().splitlines()[-1] == "[]"


def test_every_public_name_exists():
    assert all(hasattr(tf_largebatch, name) for name in tf_largebatch.__all__)
