"""ConAdvModel by keras.distribution.DataParallel: the updates of one device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "conadv_data_parallel_run.py"


@pytest.mark.long
def test_two_devices_equal_one():
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(RUN.parent.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(RUN)], env=environment, check=True, timeout=600)
