"""How tests start the programs beside them: in a process of their own, with JAX on the CPU and without TensorFlow."""

from __future__ import annotations

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
# Importing TensorFlow would take longer than most of what these programs do.
_START = (
    "import os, runpy, sys; sys.modules['tensorflow'] = None; sys.argv = sys.argv[1:]; "
    "sys.path[0] = os.path.dirname(sys.argv[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
)


def command(name, *arguments):
    return [sys.executable, "-c", _START, str(pathlib.Path(__file__).with_name(name)), *map(str, arguments)]


def environment(devices=1, **variables):
    # Compiling takes longer than running here.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": path,
        **variables,
    }
