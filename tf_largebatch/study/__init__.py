"""Studies: fair comparisons of optimizers, each with the same number of trials. README.md describes the protocol."""

from tf_largebatch.study.config import Arm, Dimension, Study, read_study
from tf_largebatch.study.runner import run_study

__all__ = ["Arm", "Dimension", "Study", "read_study", "run_study"]
