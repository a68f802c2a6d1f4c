"""Reading and executing the notebooks of colab/, for the tests of both environments."""

from __future__ import annotations

import os
import pathlib
import sys

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

COLAB = pathlib.Path(__file__).parents[2] / "colab"
# Of a cell; JAX compiles every step, which takes minutes on a machine that does other work.
SECONDS = {"tensorflow": 240, "jax": 1200}
# Runs in the environment of the extra [garden], by tests/garden.
GARDEN = "model_garden_and_tpu.ipynb"


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    (cell,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))
    return cell


def execute_small(name, directory, backend="tensorflow"):
    """Runs a notebook in SMALL mode in this environment's Python and on this backend; returns it with its outputs."""
    notebook = read(COLAB / name)
    parameters = tagged(notebook, "parameters")
    assert parameters.source.count("SMALL = False") == 1
    parameters.source = parameters.source.replace("SMALL = False", "SMALL = True")
    assert KernelManager(kernel_name="python3").format_kernel_cmd()[0] == sys.executable
    resources = {"metadata": {"path": str(directory)}}
    client = NotebookClient(notebook, timeout=SECONDS[backend], kernel_name="python3", resources=resources)
    return client.execute(env={**os.environ, "KERAS_BACKEND": backend})


def printed(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(notebook):
    """The PNG pictures shown, base64."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
