"""The programs that evaluate a saved model on a data set and classify images with it."""

from __future__ import annotations

import csv
import json
import re

import keras
import numpy as np
import pytest
from absl import flags
from PIL import Image
from train_runs import add_networks, command_line

from tf_largebatch import data, evaluate, predict
from tf_largebatch.train import final_model

NAMES = ("left", "right")


def program(module, *arguments):
    values = flags.FlagValues()
    module.define_flags(values)
    values(["program", *arguments])
    return module.main(["program"], values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory of images that are bright on one side, and a run on them."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("validation", 10)):
        for number, name in enumerate(NAMES):
            (root / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
                pixels[:, 4 * number : 4 * number + 4] += 180
                Image.fromarray(pixels).save(root / "images" / part / name / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        add_networks(patch)
        options = ("--dataset=folder", f"--data_dir={root / 'images'}", "--model=linear", "--optimizer=sgd")
        sizes = ("--batch_size=40", "--epochs=3", "--verbose=0")
        assert command_line(*options, *sizes, f"--output_dir={root / 'run'}") == 0
    return root


def test_the_file_knows_its_classes_and_takes_pixels(trained):
    model, information = final_model.load(trained / "run" / "final.keras")
    assert information == final_model.Information(NAMES, 255.0, logits=True)
    assert keras.models.load_model(trained / "run" / "final.keras").input_shape == (None, 8, 8, 1)
    image = np.zeros((1, 8, 8, 1))
    image[:, :, 4:] = 255
    assert model.predict_on_batch(image).argmax() == 1
    config = json.loads((trained / "run" / "config.json").read_text())
    assert config["dataset"]["class_names"] == list(NAMES)


def test_evaluate(trained, capsys, tmp_path):
    assert program(evaluate, f"--model={trained / 'run'}", "--attack=untargeted", "--epsilon=255") == 0
    printed = capsys.readouterr().out
    assert "validation accuracy 1.0000 of 20 images of images" in printed
    assert "validation accuracy 0.0000 after one untargeted step of 255 in units of 1/255" in printed
    output_dir = trained / "run" / "evaluation"
    found = json.loads((output_dir / "evaluation.json").read_text())
    assert (found["accuracy"], found["attacked_accuracy"], found["top5_accuracy"]) == (1.0, 0.0, None)
    with open(output_dir / "confusion.csv") as file:
        assert list(csv.reader(file)) == [["true class", *NAMES], ["left", "10", "0"], ["right", "0", "10"]]
    assert (output_dir / "confusion.png").read_bytes().startswith(b"\x89PNG")
    # Without the run's configuration the data set must be named.
    alone = tmp_path / "model.keras"
    alone.write_bytes((trained / "run" / "final.keras").read_bytes())
    arguments = ("--dataset=folder", f"--data_dir={trained / 'images'}", f"--output_dir={tmp_path / 'out'}")
    assert program(evaluate, f"--model={alone}", *arguments) == 0
    assert (tmp_path / "out" / "evaluation.json").exists()


def test_the_runs_number_of_held_out_images_applies_where_they_are_evaluated(tmp_path):
    held_out = {"data_dir": None, "download": False, "validation_examples": 100}
    run = {"eval_split": "validation"}
    found = evaluate._load({"name": "digits", "eval_split": "test", **held_out}, run, False, None)
    assert (found.eval_split, found.eval_size) == ("test", 360)
    found = evaluate._load({"name": "digits", "eval_split": "validation", **held_out}, run, False, None)
    assert (found.eval_split, found.eval_size) == ("validation", 100)
    np.savez(tmp_path / "set.npz", images=np.zeros((200, 2, 2, 1), np.uint8), labels=np.arange(200) % 2)
    found = evaluate._load({"name": str(tmp_path / "set.npz"), "eval_split": "test", **held_out}, run, False, None)
    assert (found.eval_split, found.eval_size) == ("validation", 100)
    with pytest.raises(ValueError, match="validation_examples must be left out with eval_split=test"):
        evaluate._load({"name": "digits", "eval_split": "test", **held_out}, run, True, None)


def test_top_five_counts_ties_for_the_true_class():
    images, labels = np.zeros((6, 2, 2, 1), np.uint8), np.arange(6)
    dataset = data.from_arrays((images, labels), (images, labels))
    pixels = keras.Input((2, 2, 1))
    model = keras.Model(pixels, keras.layers.Dense(6, use_bias=True)(keras.layers.Flatten()(pixels)))
    model.layers[-1].bias.assign(np.arange(6.0))
    found = evaluate.evaluate(model, dataset, batch_size=4)
    assert (found.images, found.accuracy, found.top5_accuracy) == (6, 1 / 6, 5 / 6)


def test_predict(trained, tmp_path, capsys):
    output = tmp_path / "predictions.csv"
    arguments = (f"--images={trained / 'images' / 'validation'}", f"--output={output}", "--batch_size=7")
    assert program(predict, f"--model={trained / 'run'}", *arguments) == 0
    assert capsys.readouterr().out == f"20 images classified: {output}\n"
    with open(output) as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "class", "probability", *NAMES] and len(rows) == 20
    for path, name, probability, *all_of_them in rows:
        assert f"/{name}/" in path and float(probability) == max(map(float, all_of_them)) > 0.5
        assert sum(map(float, all_of_them)) == pytest.approx(1, abs=1e-4)
    one = trained / "images" / "validation" / "left" / "3.png"
    assert program(predict, f"--model={trained / 'run'}", f"--images={one}", f"--output={output}", "--top=2") == 0
    assert capsys.readouterr().out == f"1 images classified: {output} (replaced)\n"
    with open(output) as file:
        header, row = csv.reader(file)
    assert header == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert (row[1], row[3]) == NAMES


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (evaluate, [], "model must be given"),
        (evaluate, ["--model=nothing.keras"], "model must be a .keras file or a run's directory that exists"),
        (evaluate, ["--model={empty}"], "model must be a .keras file or a run's directory with final.keras"),
        (evaluate, ["--model={run}", "--epsilon=2"], "epsilon must be left out with attack=none"),
        (evaluate, ["--model={run}", "--dataset=digits"], "model must be a model with outputs of the shape .10,."),
        (evaluate, ["--model={damaged}"], "damaged.keras is damaged, or no model that Keras can load"),
        (predict, ["--model={run}"], "images must be given"),
        (predict, ["--model={run}", "--images={empty}"], "images must be a directory with images"),
        (predict, ["--model={run}", "--images={damaged}"], "damaged.keras cannot be read as an image"),
        (predict, ["--model={run}", "--images={images}", "--top=3"], "top must be from 1 to the 2 classes"),
    ],
)  # fmt: skip
def test_refusals(module, arguments, message, trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.keras").write_bytes(b"PK nothing")
    places = {"run": trained / "run", "images": trained / "images"}
    places.update(empty=tmp_path / "empty", damaged=tmp_path / "damaged.keras")
    monkeypatch.chdir(tmp_path)
    assert program(module, *(one.format(**places) for one in arguments)) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "predictions.csv").exists()
