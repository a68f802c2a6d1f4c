"""JAX only: keras.distribution.DataParallel makes the update of one device."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import distributed_run
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def on_devices(number, path):
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, distributed_run.__file__, str(number), str(path)]
    subprocess.run(command, env=environment, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return dict(np.load(path))


@pytest.fixture(scope="module")
def one_device():
    return distributed_run.run()


@pytest.mark.parametrize("devices", [8, pytest.param(2, marks=pytest.mark.long)])
def test_the_update_is_that_of_one_device(devices, one_device, tmp_path):
    """Top-k metrics included (keras 19290). Batches that the devices do not divide are refused (keras 21167)."""
    found = on_devices(devices, tmp_path / "run.npz")
    assert found.pop("devices") == devices
    refusals = found.pop("refusals")
    assert set(found) == set(one_device)
    for name, value in one_device.items():
        # The bias before a batch norm has no gradient but rounding: absolute.
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-6, err_msg=name)
    if devices == 8:
        assert len(refusals) == 3
        assert all("Every batch must have a multiple of 8 examples" in sentence for sentence in refusals)
        assert "received batch_size=20" in refusals[0] and "a last batch of 4" in refusals[1]
