"""Configurations of studies: what is read, and what is refused."""

from __future__ import annotations

import pytest
import yaml
from study_cases import CONTENT, study

from tf_largebatch.study.config import make_study, read_study


def test_a_written_study_is_read_again(tmp_path):
    made = study(name="small", data_dir="somewhere")
    (tmp_path / "any.yaml").write_text(yaml.safe_dump(made.describe(), sort_keys=False))
    assert read_study(tmp_path / "any.yaml").describe() == made.describe()


def test_the_name_of_the_file_is_the_studys(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONTENT))
    assert read_study(tmp_path / "small.yaml", data_dir="here").name == "small"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trial": 3}, r"fields must be among .*received fields=\['trial'\]"),
        ({"updates": 0}, "updates must be a whole number above 0; received updates=0"),
        ({"batch_sizes": []}, "batch_sizes must be different whole numbers"),
        ({"batch_sizes": 64}, "batch_sizes must be a list of numbers; received batch_sizes=64"),
        ({"final_seeds": [0, 1]}, "final_seeds must be other than the seed 0"),
        ({"evaluations": 9}, "evaluations must be at most updates=8"),
        ({"model": "resnet9000"}, "model must be one of"),
        ({"augment": "all"}, "augment must be one of none, crop_flip"),
        ({"arms": {}}, "arms must be a mapping of arms"),
        ({"arms": {"a": {"optimizer": "what"}}}, r"arms\.a\.optimizer must be one of sgd, lars, clars"),
        ({"arms": {"a": {}}}, r"arms\.a must be given an optimizer"),
        ({"arms": {"a": {"optimizer": "sgd"}}}, r"arms\.a must be given learning_rate"),
        ({"arms": {"a": {"optimizer": "sgd", "fixed": {"eta": 1}}}}, r"arms\.a must be made of the hyper-parameters"),
        (
            {"arms": {"a": {"optimizer": "sgd", "space": {"learning_rate": {"log": [0, 1]}}}}},
            r"arms\.a\.space\.learning_rate must be a list of choices",
        ),
        (
            {"arms": {"a": {"optimizer": "sgd", "fixed": {"learning_rate": 1}, "space": {"learning_rate": [1]}}}},
            "both fixed and searched",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make_study({**CONTENT, **changes})


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"scaling": "cubic"}, r"arms\.a\.scaling must be one of none, sqrt, linear"),
        ({"passes": 0}, r"arms\.a\.passes must be a whole number above 0"),
        ({"augment": "all"}, r"arms\.a\.augment must be one of none, crop_flip"),
        ({"adversarial": {"radius": 4}}, r"arms\.a\.adversarial must be made of epsilon"),
        (
            {"optimizer": "clars", "fixed": {"learning_rate": 1, "eta": 1, "denominator": "median"}},
            "denominator must be",
        ),
    ],
)
def test_what_an_arm_cannot_be_is_refused(arm, message):
    with pytest.raises(ValueError, match=message):
        study(arms={"a": {"optimizer": "sgd", "fixed": {"learning_rate": 1}, **arm}})


def test_what_an_arm_has_of_its_own_is_written_and_read_again():
    own = {"scaling": "sqrt", "passes": 3, "augment": "crop_flip", "adversarial": {"epsilon": 8.0, "staleness": 2}}
    made = study(arms={"a": {"optimizer": "sgd", "fixed": {"learning_rate": 1}, **own}, **CONTENT["arms"]})
    assert make_study(made.describe()).describe() == made.describe()
    assert (made.updates_of("a"), made.updates_of("adamw"), made.augment_of("a")) == (24, 8, "crop_flip")
    assert (made.trials_of("a"), made.trials_of("adamw")) == (1, 3)
    assert set(made.describe()["arms"]["adamw"]) == {"optimizer", "warmup", "schedule", "fixed", "space"}


def test_a_point_may_have_a_micro_batch_size_of_its_own():
    made = study(micro_batch_size=32)
    assert [made.micro_batch_size_of({}, batch_size) for batch_size in (16, 32, 64)] == [None, None, 32]
    assert made.micro_batch_size_of({"micro_batch_size": 8}, 64) == 8


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"config must be a readable YAML file.*bad\.yaml"):
        read_study(tmp_path / "bad.yaml")
