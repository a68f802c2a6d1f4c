"""Arms without a search beside a reference."""

from __future__ import annotations

import json

import yaml
from study_cases import row, study

from tf_largebatch.study import gaps, jobs

ARMS = {"adam": {"optimizer": "adamw", "fixed": {"learning_rate": 0.001}}}
ARMS["fixed"] = {"optimizer": "clars", "fixed": {"learning_rate": 1.0, "eta": 0.1, "max_rate": 0.3}}


def write(directory, accuracies):
    made = study(batch_sizes=[64], arms=ARMS)
    rows = [row(job, 0.5) for job in jobs.search_jobs(made)]
    final = [row(job, accuracies[job.arm] + 0.01 * job.seed) for job in jobs.final_jobs(made, rows)]
    final = [{**r, "at_cap": [0.0, 1.0]} if r["arm"] == "fixed" else r for r in final]
    directory.mkdir()
    (directory / "study.yaml").write_text(yaml.safe_dump(made.describe()))
    (directory / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, *final]))


def test_the_worst_gap_over_the_settings(tmp_path, capsys):
    write(tmp_path / "easy", {"adam": 0.9, "fixed": 0.95})
    write(tmp_path / "hard", {"adam": 0.6, "fixed": 0.55})
    directories = [str(tmp_path / name) for name in ("easy", "hard")]
    found = gaps.reached([tmp_path / "easy", tmp_path / "hard"])
    assert set(found["fixed"]) == {("easy", 64), ("hard", 64)}
    assert abs(gaps.worst_gap(found["fixed"], found["adam"]) + 0.05) < 1e-9
    assert gaps.main([*directories, "--reference=adam", f"--output={tmp_path}"]) == 0
    lines = (tmp_path / "gaps.md").read_text().splitlines()
    assert "| arm | easy, 64 | hard, 64 | worst gap to adam | largest drop | at the cap |" in lines
    assert "| fixed | 95.5 | 55.5 | -5.0 | 0.0 | 50% |" in lines
    assert (tmp_path / "gaps.png").stat().st_size > 5000
    assert gaps.main([*directories, "--reference=sgd", f"--output={tmp_path}"]) == 1
    assert "reference must be an arm with final runs: adam, fixed" in capsys.readouterr().err
