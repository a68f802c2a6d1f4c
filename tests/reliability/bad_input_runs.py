"""Runs the calls and command lines of bad_input.py in a directory of files made for them."""

from __future__ import annotations

import contextlib
import io
import pathlib
import pickle
import shlex
import zipfile
from typing import Any

import keras
import numpy as np
import yaml
from absl import flags
from PIL import Image

import tf_largebatch as lb
from tf_largebatch import analysis, batch_size, callbacks, data, evaluate, predict, train
from tf_largebatch.study import __main__ as study_program

# What a reader that executes code would leave behind.
EXECUTED = "executed.txt"
PROGRAMS = {"train": train, "study": study_program, "evaluate": evaluate, "predict": predict, "batch_size": batch_size}
STUDY = {
    "dataset": "digits",
    "model": "resnet8",
    "batch_sizes": [64],
    "validation_examples": 300,
    "updates": 8,
    "trials": 1,
    "final_seeds": [1],
    "evaluations": 4,
    "arms": {"sgd": {"optimizer": "sgd", "fixed": {"learning_rate": 0.1}}},
}
STUDY_CHANGES: dict[str, dict[str, Any]] = {
    "field": {"trial": 3},
    "updates": {"updates": 0},
    "no_arms": {"arms": {}},
    "optimizer": {"arms": {"a": {"optimizer": "what"}}},
    "model": {"model": "resnet9000"},
    "missing": {"dataset": "none.npz"},
    "fashion": {"dataset": "fashion_mnist"},
    "cifar10": {"dataset": "cifar10"},
    "unknown": {"dataset": "cifar"},
    "unlabelled": {"dataset": "unlabelled.npz"},
    "fractions": {"dataset": "study_fractions.npz"},
    "size": {"image_size": 3},
    "held_out": {"validation_examples": 5000},
    "small_images": {"model": "resnet50"},
    "rate": {"arms": {"a": {"optimizer": "sgd", "fixed": {"learning_rate": "fast"}}}},
    "eta": {"arms": {"a": {"optimizer": "lars", "fixed": {"learning_rate": 1.0, "eta": -1.0}}}},
    "epsilon": {"arms": {"a": {"optimizer": "sgd", "adversarial": {"epsilon": -1}, "fixed": {"learning_rate": 1.0}}}},
    "precision": {"mixed_precision": "float17"},
    "norms": {"norm_examples": 0},
    "targets": {"targets": ["high"]},
    "micro_batches": {"micro_batch_size": 0},
    "robustness": {"robustness": -1},
    "sharpness": {"sharpness_examples": 0},
    "trains_at": {"trains_at": 50},
    "agreement": {"record_agreement": "yes"},
    "seed": {"seed": 0.5},
}
TEXTS = {
    "run.yaml": "model: resnet8",
    "run.txt": "model: resnet8",
    "misspelt.yaml": "modle: resnet8",
    "list.yaml": "- model",
    "broken.yaml": "model: [",
    "executes.yaml": f"model: !!python/object/apply:os.mknod [{EXECUTED}]",
    "broken.json": "{",
    "wrong_type.json": '{"epochs": "many"}',
    "damaged.npz": "PK nothing",
    "damaged.keras": "PK nothing",
    "full/file.txt": "something",
    "foreign_run/config.json": "{}",
    "study.yaml": yaml.safe_dump(STUDY),
    **{f"study_{name}.yaml": yaml.safe_dump({**STUDY, **change}) for name, change in STUDY_CHANGES.items()},
}
IMAGES = (np.arange(4 * 64) % 16).astype(np.uint8).reshape(4, 8, 8, 1)
X = IMAGES.astype(np.float32)
Y = np.arange(4)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

UNREDUCED = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)

# A layer that leaves a file behind when it is called.
TOUCHES = keras.layers.Lambda(lambda x: (__import__("pathlib").Path("executed.txt").touch(), x)[1])


class Touches:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(EXECUTED),)


def net() -> keras.Model:
    """A classifier of the digits."""
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])


def surface() -> analysis.LossSurface:
    """The loss of `net` on four images."""
    return analysis.LossSurface(net(), X, Y, LOSS)


def branching() -> keras.Model:
    """A model with a layer that has no rule."""

    class Own(keras.layers.Dense):
        def call(self, x: Any, training: bool = False) -> Any:
            return super().call(x) * keras.ops.mean(self.kernel)

    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), Own(10, name="own")])


def coupled(y: Any, y_pred: Any) -> Any:
    """A loss that couples the examples."""
    return keras.ops.square(keras.ops.mean(y_pred))


def compiled(model: keras.Model, loss: Any = LOSS, optimizer: Any = None) -> keras.Model:
    """The model, compiled with CLARS."""
    model.compile(optimizer or lb.CLARS(), loss)
    return model


NAMES = {
    **{name: getattr(lb, name) for name in lb.__all__},
    **{name: getattr(callbacks, name) for name in callbacks.__all__},
    **{name: getattr(analysis, name) for name in analysis.__all__},
    **{
        "data": data,
        "net": net,
        "branching": branching,
        "compiled": compiled,
        "coupled": coupled,
        "keras": keras,
        "np": np,
        "surface": surface,
        "IMAGES": IMAGES,
        "X": X,
        "Y": Y,
        "LOSS": LOSS,
        "unreduced": UNREDUCED,
    },
}


def make_files(directory: pathlib.Path) -> None:
    """Writes the files that the calls and command lines name."""
    (directory / "empty").mkdir()
    for name, text in TEXTS.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    (directory / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    arrays = {
        "unlabelled.npz": {"images": IMAGES},
        "uneven.npz": {"images": IMAGES, "labels": Y[:3]},
        "nan.npz": {"images": X * np.nan, "labels": Y},
        "fractions.npz": {"images": IMAGES, "labels": Y + 0.5},
        "study_fractions.npz": {"x_train": X, "y_train": Y + 0.5, "x_test": X, "y_test": Y},
    }
    for name, content in arrays.items():
        np.savez(directory / name, **content)
    with zipfile.ZipFile(directory / "pickled.npz", "w") as file:
        pickled = io.BytesIO()
        np.lib.format.write_array_header_1_0(pickled, {"descr": "|O", "fortran_order": False, "shape": ()})
        for name in ("images", "labels", "model/0"):
            file.writestr(f"{name}.npy", pickled.getvalue() + pickle.dumps(Touches()))
    Image.fromarray(IMAGES[0, :, :, 0]).save(directory / "image.png")
    net().save(directory / "model.keras")
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]).save(directory / "dense.keras")
    keras.Sequential([keras.Input((8, 8, 1)), TOUCHES]).save(directory / "executes.keras")
    (directory / EXECUTED).unlink(missing_ok=True)


def refused(call: str) -> str:
    """Makes a call of Python or runs a command line, and returns the message that it ends with.

    Raises:
        AssertionError: If it is accepted, or a command line prints more than one line or ends without a status.
        Exception: Any error but a ValueError.
    """
    if call.split()[0] in PROGRAMS:
        return _refused_command(*shlex.split(call))
    try:
        eval(call, dict(NAMES))
    except ValueError as error:
        return str(error)
    raise AssertionError(f"accepted: {call}")


def _refused_command(name: str, *arguments: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        module = PROGRAMS[name]
        if module is study_program:
            status = module.main(arguments)
        else:
            values = flags.FlagValues()
            module.define_flags(values)
            status = module.main(values([name, *arguments]), values)
    error = printed.getvalue()
    assert status == 1, f"exit status {status}: {error}"
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error.removeprefix("error: ").strip()


def read_unsafely(name: str) -> None:
    """Reads one of the files that hold code, with a reader that executes it."""
    if name.endswith(".yaml"):
        yaml.unsafe_load(pathlib.Path(name).read_text())
    elif name.endswith(".npz"):
        with np.load(name, allow_pickle=True) as file:
            file["images"]
    else:
        keras.models.load_model(name, safe_mode=False)(X)
