"""`python -m tf_largebatch.study CONFIG.yaml`: runs a study, or continues it, and writes its report."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from tf_largebatch import interrupts
from tf_largebatch.check import require
from tf_largebatch.files import local_path
from tf_largebatch.study.config import read_study
from tf_largebatch.study.plots import write_plots
from tf_largebatch.study.report import write_report
from tf_largebatch.study.runner import RUNS, main_line, read_rows, run_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0 when the study is complete, 3 when some of it is left, 1 after an error, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m tf_largebatch.study", description=__doc__)
    parser.add_argument("config", help="YAML file of the study; tf_largebatch/study/README.md describes it")
    parser.add_argument("--output_dir", help="directory of the study; default: results/NAME")
    parser.add_argument("--data_dir", help="directory of the data set's files, in place of the config's")
    parser.add_argument("--processes", type=int, default=1, help="runs at once; default: 1")
    parser.add_argument("--minutes", type=float, help="stop cleanly before this time; default: no limit")
    parser.add_argument("--first", default="", help="arms to finish before the others begin, separated by commas")
    given = parser.parse_args(arguments)
    try:
        study = read_study(given.config, data_dir=given.data_dir)
        directory = local_path(given.output_dir or pathlib.Path("results") / study.name, "output_dir")
        existing = directory.is_dir() or not directory.exists()
        require(existing, "output_dir", str(directory), "a directory, and it is a file")
        first = [name for name in given.first.split(",") if name]
        with interrupts.raising():
            complete = run_study(study, directory, given.processes, given.minutes, main_line, first)
            rows = read_rows(directory / RUNS)
            write_report(study, rows, directory)
            write_plots(study, rows, directory)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues; finished runs are kept.", file=sys.stderr)
        return interrupts.INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    main_line(f"{directory / 'table.md'}: {'complete' if complete else 'not complete, the same command continues'}")
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
