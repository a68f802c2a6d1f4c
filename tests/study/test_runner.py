"""Running a study: nothing is lost, nothing is repeated."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from study_cases import CONTENT, row, study

from tf_largebatch import models
from tf_largebatch.study import __main__ as command_line
from tf_largebatch.study import execution, run, runner


@pytest.fixture
def fake_training(monkeypatch):
    trained = []

    def train(study, job):
        trained.append(job)
        return row(job, 0.5 + 0.1 * job.trial, status="diverged" if job.trial == 0 else "trained")

    monkeypatch.setattr(execution, "train", train)
    monkeypatch.setattr(execution, "prepare", lambda study, jobs: None)
    monkeypatch.setattr(execution, "check", lambda study, jobs: None)
    return trained


def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path, fake_training):
    made, said = study(), []
    assert runner.run_study(made, tmp_path, say=said.append)
    whole = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(whole) == len(said) == len(fake_training) == 20
    assert "diverged" in said[0] and said[-1].startswith("[20/20] adamw, batch 128, final")
    # A killed process left 7 runs and a part of the eighth.
    (tmp_path / "runs.jsonl").write_text("\n".join(whole[:7]) + "\n" + whole[7][:30])
    fake_training.clear()
    assert runner.run_study(made, tmp_path, say=said.append)
    assert len(fake_training) == 13
    again = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert {r["key"] for r in again} == {json.loads(line)["key"] for line in whole} and len(again) == 20


def test_minutes_stop_before_a_run_that_would_end_too_late(tmp_path, fake_training, monkeypatch):
    clock = iter(range(0, 10000, 13))
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(next(clock)))
    assert not runner.run_study(study(), tmp_path, minutes=1.5, say=lambda line: None)
    assert 0 < len(fake_training) < 8


def test_an_arm_that_fails_is_left_out_and_tried_again_by_the_next_call(tmp_path, fake_training, monkeypatch):
    works, said = execution.train, []

    def fails(study, job):
        if job.arm == "clars" and job.batch_size == 128:
            raise RuntimeError("out of memory")
        return works(study, job)

    monkeypatch.setattr(execution, "train", fails)
    assert not runner.run_study(study(), tmp_path, say=said.append)
    assert len(fake_training) == 15
    assert [line for line in said if "failed" in line] == [
        "clars, batch 128 failed and is left out: RuntimeError: out of memory"
    ]
    monkeypatch.setattr(execution, "train", works)
    assert runner.run_study(study(), tmp_path, say=said.append, first=["adamw"])
    assert len(fake_training) == 20
    with pytest.raises(ValueError, match=r"first must be among clars, adamw; received first=\['sgd'\]"):
        runner.run_study(study(), tmp_path, first=["sgd"])


def test_a_directory_holds_one_study(tmp_path, fake_training):
    runner.run_study(study(), tmp_path, say=lambda line: None)
    with pytest.raises(
        ValueError, match=r"config must be the one in .*study\.yaml; received config={'trials': 2}: choose"
    ):
        runner.run_study(study(trials=2), tmp_path)
    # A field that is newer than the study has its default.
    stored = (tmp_path / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(stored.replace("record_agreement: false\n", ""))
    assert runner.run_study(study(), tmp_path, say=lambda line: None)


def test_the_command_line_trains_selects_tests_and_reports(tmp_path, monkeypatch, capsys):
    def small(name, image_shape, num_classes):
        layers = [keras.layers.Flatten(), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(num_classes)]
        return keras.Sequential([keras.Input(image_shape), *layers])

    monkeypatch.setattr(models, "build", small)
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 4, 4, 1))
    arrays = {}
    for part, count in (("train", 240), ("test", 60)):
        labels = random.integers(0, 3, count)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = centres[labels] + 0.3 * random.normal(size=(count, 4, 4, 1)), labels
    np.savez(tmp_path / "blobs.npz", **arrays)
    content = {
        **CONTENT,
        "dataset": str(tmp_path / "blobs.npz"),
        "batch_sizes": [32],
        "trials": 2,
        "final_seeds": [1],
        "validation_examples": 60,
        "record_agreement": True,
        # Of one arm two points and the better one again, of the other one point twice.
        "arms": {
            "clars": CONTENT["arms"]["clars"],
            "adamw": {"optimizer": "adamw", "fixed": {"learning_rate": 0.02}},
        },
    }
    (tmp_path / "study.yaml").write_text(json.dumps({**content, "updates": 16}))
    arguments = [str(tmp_path / "study.yaml"), f"--output_dir={tmp_path / 'out'}"]
    assert command_line.main(arguments) == 0
    assert "[5/5]" in capsys.readouterr().out
    rows = runner.read_rows(tmp_path / "out" / "runs.jsonl")
    assert all("test_accuracy" not in r for r in rows if r["phase"] == "search")
    assert max(r["test_accuracy"] for r in rows if r["phase"] == "final") > 0.8  # chance is a third
    recorded = [r["agreements"] for r in rows if r["arm"] == "clars"]
    assert all(len(values) == 4 and 0 < max(values) <= 1 for found in recorded for values in found.values())
    written = {"study.yaml", "runs.csv", "curves.csv", "table.md", "agreement.png", "search.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} >= written
    assert len((tmp_path / "out" / "curves.csv").read_text().splitlines()) == 1 + 5 * 4
    assert command_line.main(arguments) == 0  # nothing is left to do
    assert runner.read_rows(tmp_path / "out" / "runs.jsonl") == rows


def test_an_error_is_one_sentence(tmp_path, capsys):
    assert command_line.main([str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err.startswith("error: config must be a readable YAML file")


def test_batches_are_whole_passes_over_the_images():
    images, labels = np.arange(10, dtype="float32").reshape(10, 1, 1, 1), np.arange(10)
    batches = run.Batches((images, labels), 4, "none", seed=3)
    batches.select(0, 5)
    drawn = np.concatenate([batches[k][1] for k in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    batches.select(2, 3)
    np.testing.assert_array_equal(batches[0][1], drawn[8:12])
    assert run.segments(10, 4) == [(0, 2), (2, 5), (5, 8), (8, 10)]
