"""JAX only: the benchmark of training steps on a GPU, small, on the CPU."""

from __future__ import annotations

import keras
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("it measures Keras on JAX", allow_module_level=True)

from benchmarks import gpu, gpu_table


@pytest.mark.long
@pytest.mark.parametrize("case", ["resnet20", "update", "vit_s", "conadv"])
def test_a_case_is_measured_and_not_repeated(case, tmp_path, capsys):
    arguments = ["--small", f"--cases={case}", "--rounds=2", "--steps=1", f"--json={tmp_path / 'gpu.json'}"]
    row = gpu.main(arguments)["cases"][case]
    others = {"update": ("CLARS", "Lamb"), "conadv": ("concurrent", "sequential")}.get(case, ("exact", "sampled"))
    for name in others:
        assert row[f"{name}_ratio"] > 0 and row[f"{name}_memory_ratio"] > 0
    assert {**gpu_table.TITLES, **gpu_table.UPDATES}[case] in capsys.readouterr().out
    assert gpu.main(arguments)["cases"][case] == row


def test_no_case_begins_when_the_time_is_over(capsys):
    assert gpu.main(["--small", "--cases=update", "--seconds=-1"])["cases"] == {}
    assert "not begun" in capsys.readouterr().out
