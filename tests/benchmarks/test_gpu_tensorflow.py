"""The modules of TensorFlow's steps: written with TensorFlow, run by JAX's runtime, on the CPU."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import gpu_tensorflow, harness


def test_a_module_runs_and_reports_its_memory():
    jax = pytest.importorskip("jax")
    from jax.extend.mlir.dialects import stablehlo

    lowered = jax.jit(lambda x, n: (x @ x, n + 1)).lower(np.ones((4, 4), np.float32), np.int32(3))
    module = stablehlo.serialize_portable_artifact(lowered.compiler_ir("stablehlo"), stablehlo.get_minimum_version())
    program = gpu_tensorflow.compile_module(module, repeats=2)
    (product, one), state = program.call(program.state)
    assert program.repeats == 2 and program.bytes >= 2 * 64
    np.testing.assert_allclose(product, state[0] @ state[0], rtol=1e-6)
    assert one == 1  # integers begin at 0


def test_arguments_have_the_types_of_the_module():
    pytest.importorskip("jax")
    kinds = {
        "tensor<3x3x8x4xbf16>": ((3, 3, 8, 4), "bfloat16"),
        "tensor<i32>": ((), "int32"),
        "tensor<f32>": ((), "float32"),
    }
    for name, (shape, dtype) in kinds.items():
        array = gpu_tensorflow._argument(1, name)
        assert array.shape == shape and array.dtype == dtype


@pytest.mark.long
def test_tensorflows_steps_are_written_and_timed(tmp_path):
    report = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu_tensorflow", "--small"]
    subprocess.run([*command, f"--write={tmp_path}"], check=True)
    run = [*command, f"--run={tmp_path}", f"--json={report}", "--rounds=2", "--steps=1"]
    subprocess.run(run, check=True)
    cases = harness.read_report(report)["cases"]
    assert cases["tensorflow_resnet20"]["exact_ratio"] > 0 and cases["tensorflow_update"]["CLARS_memory_ratio"] > 0
