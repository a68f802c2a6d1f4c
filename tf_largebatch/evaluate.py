"""Evaluates a saved model on a data set: python -m tf_largebatch.evaluate --model=RUN [flags].

It prints the accuracy, the top-5 accuracy and, with --attack, the accuracy under attack, and leaves them in
--output_dir: evaluation.json, confusion.csv (one row a true class, one column a predicted class) and confusion.png.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags

from tf_largebatch import data
from tf_largebatch.check import require
from tf_largebatch.conadv import accuracy_under_attack
from tf_largebatch.files import local_path, replacing, write_json
from tf_largebatch.plots.confusion import plot_confusion
from tf_largebatch.train import command_line, final_model, run_directory

ATTACKS = ("none", "untargeted", "targeted")
DATA_FLAGS = ("dataset", "data_dir", "download", "eval_split", "validation_examples")
TOP = 5


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a model does on a data set.

    Attributes:
        confusion: Number of images of each true class (rows) by predicted class (columns), integers `(k, k)`.
        top5_accuracy: Share of the images whose class is among the five most probable; None for five classes or fewer.
        attacked_accuracy: Share of the images classified correctly under attack; None without one.
    """

    confusion: np.ndarray
    top5_accuracy: float | None = None
    attacked_accuracy: float | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the images classified correctly."""
        return float(np.trace(self.confusion) / self.images)


def evaluate(
    model: keras.Model,
    dataset: data.Dataset,
    *,
    batch_size: int = 256,
    attack: str = "none",
    epsilon: float = 4.0,
    logits: bool = True,
) -> Evaluation:
    """Evaluates a classifier of stored pixels on the evaluation images of a data set.

    Args:
        model: The classifier, such as a run's final.keras.
        dataset: The data.
        batch_size: Images evaluated at once.
        attack: `"none"`, `"untargeted"` or `"targeted"`: one gradient step.
        epsilon: Its radius in units of 1/255 of the value range.
        logits: Whether the model returns logits, not probabilities.
    """
    classes = dataset.num_classes
    confusion, near = np.zeros((classes, classes), np.int64), 0
    for images, labels in dataset.evaluation_of_pixels(batch_size):
        output, labels = np.asarray(model.predict_on_batch(np.asarray(images))), np.asarray(labels)
        np.add.at(confusion, (labels, output.argmax(axis=1)), 1)
        # The number of classes that are more probable than the true one.
        near += int(((output > np.take_along_axis(output, labels[:, None], 1)).sum(axis=1) < TOP).sum())
    attacked = None
    if attack != "none":
        attacked = accuracy_under_attack(
            model,
            dataset.evaluation_of_pixels(batch_size),
            keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
            epsilon=epsilon,
            value_range=(0.0, dataset.pixel_scale),
            targeted=attack == "targeted",
        )
    return Evaluation(confusion, near / confusion.sum() if classes > TOP else None, attacked)


def check_fits(model: keras.Model, dataset: data.Dataset) -> None:
    """Raises unless a model takes the images of a data set and returns one number for each of its classes.

    Raises:
        ValueError: In one sentence.
    """
    for given, wanted, what, remedy in (
        (model.input_shape, dataset.image_shape, "images of the shape", "train it on images of that shape"),
        (model.output_shape, (dataset.num_classes,), "outputs of the shape", "evaluate it on the classes it knows"),
    ):
        fits = isinstance(given, tuple) and len(given) == len(wanted) + 1
        fits = fits and all(one in (None, size) for one, size in zip(given[1:], wanted, strict=True))
        require(fits, "model", model.name, f"a model with {what} {tuple(wanted)}, and it has {given}", remedy)


def image_size_of(model: keras.Model) -> int | None:
    """Returns the height and width that a model takes; None for any, or for images that are not square.

    Args:
        model: A model of images.
    """
    shape = model.input_shape
    square = isinstance(shape, tuple) and len(shape) == 4 and shape[1] == shape[2]
    return shape[1] if square else None


def write(evaluation: Evaluation, dataset: data.Dataset, output_dir: pathlib.Path, settings: dict[str, Any]) -> None:
    """Writes evaluation.json, confusion.csv and confusion.png."""
    names = dataset.class_names or tuple(str(number) for number in range(dataset.num_classes))
    with replacing(output_dir / "confusion.csv") as temporary, open(temporary, "w", newline="") as file:
        rows = [[name, *row] for name, row in zip(names, evaluation.confusion.tolist(), strict=True)]
        csv.writer(file).writerows([["true class", *names], *rows])
    plot_confusion(
        evaluation.confusion, names, output_dir / "confusion.png", title=f"{dataset.name}, {dataset.eval_split}"
    )
    write_json(
        output_dir / "evaluation.json",
        {
            **settings,
            "images": evaluation.images,
            "accuracy": evaluation.accuracy,
            "top5_accuracy": evaluation.top5_accuracy,
            "attacked_accuracy": evaluation.attacked_accuracy,
        },
    )


def find_model(path: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """Returns the .keras file of a path, which may be a run's directory, and the arguments of the run, if there is one.

    Args:
        path: What the user gave.

    Raises:
        ValueError: If there is no model.
    """
    found = local_path(path, "model")
    if found.is_dir():
        file = found / run_directory.FINAL_MODEL
        require(file.is_file(), "model", path, f"a .keras file or a run's directory with {file.name}")
        return file, run_directory.read_arguments(found)
    require(found.is_file(), "model", path, "a .keras file or a run's directory that exists")
    config = found.parent / run_directory.CONFIG
    return found, run_directory.read_arguments(found.parent) if config.is_file() else {}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags."""
    flags.DEFINE_string("model", None, "A .keras file, or the directory of a run.", flag_values=values)
    command_line.define_flags(values, DATA_FLAGS)
    flags.DEFINE_integer("batch_size", 256, "Images evaluated at once.", flag_values=values)
    flags.DEFINE_enum("attack", "none", ATTACKS, "Evaluate under a one-step attack as well.", flag_values=values)
    flags.DEFINE_float("epsilon", 4.0, "Radius of the attack in units of 1/255.", flag_values=values)
    flags.DEFINE_string("output_dir", None, "Where to write; default: evaluation beside the model.", flag_values=values)


def _run(values: flags.FlagValues) -> None:
    given: dict[str, Any] = {name: values[name].value for name in values}
    require(bool(given["model"]), "model", None, "given: a .keras file or a run's directory")
    require(given["batch_size"] >= 1, "batch_size", given["batch_size"], "1 or more")
    require(given["epsilon"] >= 0, "epsilon", given["epsilon"], "0 or more")
    attack = given["attack"]
    unused = values["epsilon"].present and attack == "none"
    require(not unused, "epsilon", given["epsilon"], "left out with attack=none")
    path, arguments = find_model(given["model"])
    model, information = final_model.load(path)
    logits = final_model.returns_logits(model, information)
    chosen: dict[str, Any] = {
        name: arguments[name] if name in arguments and not values[name].present else given[name] for name in DATA_FLAGS
    }
    chosen["name"] = chosen.pop("dataset")
    if chosen["name"] != arguments.get("dataset"):
        # What the run says of its own data set does not hold for another.
        chosen |= {name: given[name] for name in ("data_dir", "download", "validation_examples")}
    dataset = _load(chosen, arguments, bool(values["validation_examples"].present), image_size_of(model))
    check_fits(model, dataset)
    known = None if information is None else information.class_names
    if known is not None and dataset.class_names is not None:
        names = ", ".join(dataset.class_names)
        require(
            known == dataset.class_names, "model", str(path), f"a model of the classes {names}", "choose its data set"
        )
    output_dir = given["output_dir"]
    output_dir = path.parent / "evaluation" if output_dir is None else local_path(output_dir, "output_dir")
    found = evaluate(
        model,
        dataset,
        batch_size=given["batch_size"],
        attack=attack,
        epsilon=given["epsilon"],
        logits=logits,
    )
    settings = {"model": str(path), "dataset": dataset.name, "split": dataset.eval_split, "attack": attack}
    write(found, dataset, output_dir, {**settings, "epsilon": given["epsilon"] if attack != "none" else None})
    print(f"{dataset.eval_split} accuracy {found.accuracy:.4f} of {found.images} images of {dataset.name}")
    if found.top5_accuracy is not None:
        print(f"{dataset.eval_split} top-5 accuracy {found.top5_accuracy:.4f}")
    if found.attacked_accuracy is not None:
        radius = f"{given['epsilon']:g} in units of 1/255"
        print(f"{dataset.eval_split} accuracy {found.attacked_accuracy:.4f} after one {attack} step of {radius}")
    print(f"Output: {output_dir}")


def _load(
    chosen: dict[str, Any], arguments: Mapping[str, Any], names_held_out: bool, image_size: int | None
) -> data.Dataset:
    """Loads the data set; the run's number of held-out images applies where these are evaluated.

    Args:
        chosen: Arguments of `data.load`.
        arguments: Arguments of the run.
        names_held_out: Whether the user gave `validation_examples`.
        image_size: Height and width of the images.
    """
    held_out = chosen["validation_examples"]
    if names_held_out or not held_out or chosen["eval_split"] == arguments.get("eval_split"):
        return data.load(**chosen, image_size=image_size)
    found = data.load(**{**chosen, "validation_examples": None}, image_size=image_size)
    # There may be no test images, or the run may have held out images without being asked to.
    return data.load(**chosen, image_size=image_size) if found.eval_split == "validation" else found


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the program; returns the exit status."""
    return command_line.reported(argv, lambda: _run(values))


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(sys.modules["tf_largebatch.train.command_line"])
    app.run(main)
