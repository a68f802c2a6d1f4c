"""The annotations: the package passes mypy as configured, and its callers see types (py.typed).

No backend: mypy reads the package.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

CALLER = """
import keras
import numpy as np

import tf_largebatch as lb
from tf_largebatch import callbacks, data, models, norms

net = keras.Sequential([keras.layers.Dense(3)])
x, y = np.zeros((4, 2)), np.zeros((4,))
reveal_type(lb.CLARS(0.1).layerwise_rates())
reveal_type(lb.LARS(0.1).adapted_tensors())
reveal_type(lb.linear_scaling(0.1, batch_size=4096, base_batch_size=128))
reveal_type(lb.large_batch_schedule(0.1, 4096, 128, steps_per_epoch=12, epochs=6).total_steps)
reveal_type(lb.LargeBatchModel(net, norm_examples=8).norm_examples)
reveal_type(norms.KERAS.layer_classes())
reveal_type(callbacks.layerwise_values(net)["dense/kernel"].rate)
reveal_type(data.load("digits").train_size)
reveal_type(models.names())
lb.CLARS(gradient_norms=3)
lb.linear_scaling("0.1", batch_size=4096, base_batch_size=128)
"""
REVEALED = [
    "dict[str, float]",
    "list[str]",
    "float",
    "int",
    "int | None",
    "list[type]",
    "float | None",
    "int",
    "tuple[str, ...]",
]
# A user's program, type-checked as strictly as mypy can.
USER = """
from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

import tf_largebatch as lb
from tf_largebatch import callbacks, core, data, files, models, norms
from tf_largebatch.core import exclusions, momentum, noise_scale, pgd, rates, schedules


def build(name: str, dataset: data.Dataset) -> lb.LargeBatchModel:
    net = models.build(name, dataset.image_shape, dataset.num_classes)
    schedule: lb.WarmupPolynomialDecay = lb.large_batch_schedule(
        0.1, batch_size=512, base_batch_size=128, steps_per_epoch=2, epochs=3
    )
    optimizer: lb.CLARS | lb.LARS = lb.CLARS(schedule, exclude_from_layer_adaptation=[r"/bias$"])
    model = lb.LargeBatchModel(net, norm_examples=64, micro_batch_size=128)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def train(model: lb.LargeBatchModel, dataset: data.Dataset) -> dict[str, float]:
    watching = [
        callbacks.GradientNoiseScale(),
        callbacks.LayerwiseProgress(["rate"]),
        callbacks.LayerwiseRateRecorder("run/layerwise_rates.csv"),
        callbacks.LayerwiseTensorBoard("logs"),
        callbacks.MetricsRecorder("run/metrics.csv", images_per_epoch=1024),
    ]
    history = model.fit(dataset.train(512, epochs=3), epochs=3, steps_per_epoch=2, callbacks=watching)
    callbacks.plot_history(history, path="run/history.png").set_size_inches(6.0, 4.0)
    rates_now: dict[str, float] = {}
    for path, values in callbacks.layerwise_values(model).items():
        if values.rate is not None:
            rates_now[path] = values.rate
    return rates_now


def adversarial(net: keras.Model) -> lb.ConAdvModel:
    return lb.ConAdvModel(net, epsilon=4.0, staleness=1, value_range=(0.0, 1.0))


@norms.register(keras.layers.Dense, methods=("call",))
def rule(layer: keras.layers.Dense, recorder: norms.Recorder, x: np.ndarray) -> object:
    return x


def measured(net: keras.Model, x: np.ndarray, y: np.ndarray, loss: Callable[..., object]) -> int:
    return len(lb.per_example_gradient_norms(net, x, y, loss))


print(measured, adversarial, train, build, core, exclusions, momentum, noise_scale, pgd, rates, schedules)
print(files.TEMPORARY.upper(), lb.__version__.upper())
# Strict mode refuses an ignore without an error under it, so this shows that the types are seen.
lb.LARS(momentum="0.9")  # type: ignore[arg-type]
"""
# What mypy does with installed packages by itself: their types are used, their errors are theirs.
STRICT = """
[mypy]
strict = True
ignore_missing_imports = True
disallow_subclassing_any = False
disallow_untyped_decorators = False
[mypy-tf_largebatch.*]
follow_imports = silent
"""


def mypy(*arguments, config=ROOT / "pyproject.toml"):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


CACHE = ROOT / ".mypy_cache"  # reading the types of all that is imported takes most of the time


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of the package and of a caller of it: one run, since mypy takes seconds to start."""
    script = tmp_path_factory.mktemp("types") / "caller.py"
    script.write_text(CALLER)
    found = mypy("--cache-dir", CACHE, ROOT / "tf_largebatch", script)
    assert found.returncode < 2, found.stdout + found.stderr
    return found.stdout


def test_the_package_passes(said):
    errors = [line for line in said.splitlines() if ": error:" in line and "caller.py:" not in line]
    assert "checked " in said and not errors, said


def test_a_caller_sees_types_and_mistakes(said):
    assert [shown.replace("builtins.", "") for shown in re.findall(r'Revealed type is "(.*)"', said)] == REVEALED, said
    assert len(re.findall(r"error: Argument .* has incompatible type", said)) == 2, said


@pytest.mark.long
def test_a_users_program_passes_in_strict_mode(tmp_path):
    script, config = tmp_path / "user.py", tmp_path / "mypy.ini"
    script.write_text(USER)
    config.write_text(STRICT)
    found = mypy("--cache-dir", CACHE / "strict", script, config=config)
    assert found.returncode == 0, found.stdout + found.stderr
