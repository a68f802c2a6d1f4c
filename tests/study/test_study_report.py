"""Tables and pictures of a study."""

from __future__ import annotations

import csv

import pytest
from picture_texts import overlapping
from study_cases import row, study

from tf_largebatch.plots import style
from tf_largebatch.study import jobs
from tf_largebatch.study.plots import write_plots
from tf_largebatch.study.report import markdown, summary, write_report


@pytest.fixture(scope="module")
def done():
    made = study()
    accuracy = {"clars": 0.8, "adamw": 0.4}
    rows = [row(job, accuracy[job.arm] * (0.5 + 0.25 * job.trial)) for job in jobs.search_jobs(made)]
    return made, [*rows, *(row(job, accuracy[job.arm] + 0.02 * job.seed) for job in jobs.final_jobs(made, rows))]


def test_a_summary_has_the_means_of_the_final_runs(done):
    made, rows = done
    found = summary(made, made.arms[0], 64, rows)
    assert found["test"] == pytest.approx([0.81, 0.83])
    assert found["trains"] == pytest.approx(2 / 3)  # 0.4, 0.6 and 0.8, of which two reach 0.5
    assert found["first_eighth"] == pytest.approx((0.82 + 0.84) / 2 / 4)  # the first of four evaluations
    assert found["updates_to"] == {0.5: 6.0}
    assert summary(made, made.arms[1], 64, rows)["updates_to"] == {0.5: None}


def test_the_table_ranks_the_arms_and_names_what_is_missing(done):
    made, rows = done
    table = markdown(made, rows)
    assert table.index("| clars | 0.8200 (0.0141) | 2 |") < table.index("| adamw | 0.4200 (0.0141) | 2 |")
    assert "not reached" in table and "Not complete" not in table
    assert "Not complete: adamw." in markdown(made, [r for r in rows if r["arm"] == "clars"])


def test_what_final_runs_are_measured_for_is_in_the_table_and_in_a_picture(done, tmp_path):
    made, rows = done
    found = {
        "train_accuracy": 0.9,
        "robust_accuracy_1_step": 0.3,
        "robust_accuracy_10_steps": 0.2,
        "at_cap": [0.5, 1.0],
    }
    rows = [{**r, **found, "sharpness": 41.5} if r["phase"] == "final" and r["arm"] == "clars" else r for r in rows]
    table = markdown(made, rows)
    assert "| training accuracy | after 1 step | after 10 steps | sharpness |" in table
    assert "| 0.9 | 0.3 | 0.2 | 41.5 |" in table and "| 0.75 |" in table
    measured = study(robustness=4.0)
    write_plots(measured, rows, tmp_path)
    assert (tmp_path / "robustness.png").stat().st_size > 5000


def test_files(done, tmp_path):
    made, rows = done
    write_report(made, rows, tmp_path)
    write_plots(made, rows, tmp_path)
    with (tmp_path / "runs.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows) and read[0]["adapted_learning_rate"] and not read[0]["test_accuracy"]
    for name in ("accuracy", "learning_curves", "trials", "learning_rate"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_no_text_of_a_studys_pictures_overlaps_another_and_no_legend_is_longer_than_a_look_tells_apart(monkeypatch):
    space = {"learning_rate": {"log": [1e-3, 1.0]}}
    arms = {f"an arm with quite a long name, {i}": {"optimizer": "sgd", "space": space} for i in range(15)}
    made = study(arms=arms)
    rows = [row(job, 0.0 if job.trial else 0.01 * i, "trained") for i, job in enumerate(jobs.search_jobs(made))]
    drawn = {}
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.update({path.stem: figure}))
    write_plots(made, [*rows, *(row(job, 0.9) for job in jobs.final_jobs(made, rows))], "")
    assert set(drawn) == {"accuracy", "learning_curves", "trials", "search", "learning_rate"}
    for name, figure in drawn.items():
        assert not overlapping(figure), name
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert name == "accuracy" or (len(labels) == 8 and labels[-1] == "the other 8")
