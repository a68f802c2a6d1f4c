"""The configuration of a study: a YAML file, read into dataclasses and checked before any work starts."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from tf_largebatch import models
from tf_largebatch.check import flag, message, number, require
from tf_largebatch.study.arms import OPTIMIZERS
from tf_largebatch.study.arrays import AUGMENTATIONS
from tf_largebatch.study.denominators import DENOMINATORS, MEAN, denominator_of
from tf_largebatch.study.schedules import SHAPES
from tf_largebatch.study.wrapping import check_adversarial


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of an arm's search space.

    Attributes:
        scale: "log" or "linear" between `low` and `high`, or "choice" among `choices`.
        low: Lower end.
        high: Upper end.
        choices: The values to choose from.
    """

    scale: str
    low: float = math.nan
    high: float = math.nan
    choices: tuple[Any, ...] = ()

    def at(self, u: float) -> Any:
        """Returns the value at a point `u` of the unit interval [0, 1)."""
        if self.scale == "choice":
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.scale == "log":
            return self.low * (self.high / self.low) ** u
        return self.low + (self.high - self.low) * u


BASE_BATCH_SIZE = 128
SCALINGS: dict[str, Callable[[float], float]] = {"none": lambda times: 1.0, "sqrt": math.sqrt, "linear": float}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One contestant: an optimizer with a schedule, fixed hyper-parameters and a search space.

    Attributes:
        name: What tables call it.
        optimizer: A row of `arms.OPTIMIZERS`.
        warmup: Share of the updates in which the learning rate grows linearly from 0; 0 for none.
        schedule: A row of `schedules.SHAPES`, the shape of the decay after the warmup.
        scaling: A row of `SCALINGS`: how the learning rate grows with the batch size from `BASE_BATCH_SIZE`, for which
            it is given.
        passes: How many times the study's updates the arm makes.
        augment: In place of the study's.
        adversarial: Arguments of `ConAdvModel`, which then trains on adversarial images; see `adversarial.ARGUMENTS`.
        fixed: Hyper-parameters that all trials share.
        space: Hyper-parameters to search. Without any, the search is one run.
    """

    name: str
    optimizer: str
    warmup: float = 0.0
    schedule: str = "polynomial"
    scaling: str = "none"
    passes: int = 1
    augment: str | None = None
    adversarial: Mapping[str, Any] | None = None
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    space: Mapping[str, Dimension] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A whole study; equal to itself alone, so that what is computed of it can be kept.

    Attributes:
        name: Name of the study, and of its directory under `results/`.
        dataset: A row of `arrays.DATASETS`, or a path to an .npz file.
        model: A network that `tf_largebatch.models.build` knows.
        batch_sizes: Examples of an update; every arm is searched at each.
        updates: Updates of every run.
        trials: Trials of every arm at every batch size.
        final_seeds: Seeds with which the best point of each search is trained again and tested.
        arms: The contestants.
        data_dir: Directory of the data set's files, where it has any.
        validation_examples: Training images held out, on which points are chosen.
        augment: "none" or "crop_flip".
        image_size: Images are averaged down to this height and width; None for their own.
        evaluations: How many times a run is evaluated on the validation images, equally spaced.
        targets: Accuracies for which the updates needed are reported.
        trains_at: Validation accuracy from which a trial counts as one that trains.
        mixed_precision: Keras dtype policy.
        norm_examples: Examples of a batch whose norms CLARS measures; None for all.
        micro_batch_size: Every arm runs larger batches in micro-batches of this many examples, which is what batch
            normalization sees; None for no split. A point may have a `micro_batch_size` of its own.
        robustness: Radius, in units of 1/255, of the attacks of one step and of ten that the final runs are tested
            with; None for none.
        sharpness_examples: Training images of which the final runs report the sharpness of the loss, the largest
            eigenvalue of its Hessian; None to leave it out.
        record_agreement: Whether the rows of CLARS hold ||grad|| / s of every adapted tensor at each evaluation.
        seed: Seed of all searches: of the sequence of points, the initial weights and the order of the images.
    """

    name: str
    dataset: str
    model: str
    batch_sizes: tuple[int, ...]
    updates: int
    trials: int
    final_seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    data_dir: str | None = None
    validation_examples: int = 5000
    augment: str = "none"
    image_size: int | None = None
    evaluations: int = 16
    targets: tuple[float, ...] = ()
    trains_at: float = 0.5
    mixed_precision: str = "float32"
    norm_examples: int | None = None
    micro_batch_size: int | None = None
    robustness: float | None = None
    sharpness_examples: int | None = None
    record_agreement: bool = False
    seed: int = 0

    def arm(self, name: str) -> Arm:
        """Returns the arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def trials_of(self, arm: str) -> int:
        """Number of trials of an arm at a batch size: one where nothing is searched."""
        return self.trials if self.arm(arm).space else 1

    def updates_of(self, arm: str) -> int:
        """Number of updates of an arm's runs."""
        return self.updates * self.arm(arm).passes

    def augment_of(self, arm: str) -> str:
        """Returns how an arm augments the images."""
        own = self.arm(arm).augment
        return self.augment if own is None else own

    def micro_batch_size_of(self, point: Mapping[str, Any], batch_size: int) -> int | None:
        """Examples that run at a time, of a point at a batch size; None for the whole batch."""
        size = point.get("micro_batch_size", self.micro_batch_size)
        return None if size is None or size >= batch_size else int(size)

    def records_agreement_of(self, arm: str) -> bool:
        """Returns whether the runs of an arm record the agreement of the examples' gradients."""
        return self.record_agreement and OPTIMIZERS[self.arm(arm).optimizer].measures_norms

    def describe(self) -> dict[str, Any]:
        """Returns the study as JSON types, the content of its `study.yaml`.

        `data_dir` is left out: it changes no result.
        """
        content = dataclasses.asdict(self)
        del content["data_dir"]
        content["arms"] = {arm.name: _plain_arm(arm) for arm in self.arms}
        for key in ("batch_sizes", "final_seeds", "targets"):
            content[key] = list(content[key])
        return content


def read_study(path: str | os.PathLike[str], **changes: Any) -> Study:
    """Reads and checks a study.

    Args:
        path: The YAML file.
        **changes: Values that replace those of the file, where they are not None.

    Raises:
        ValueError: In one sentence that names the field and its value.
    """
    path = pathlib.Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"config must be a readable YAML file; received {os.fspath(path)!r}: {reason}.") from error
    return make_study(content, default_name=path.stem, **changes)


def make_study(content: Any, default_name: str = "study", **changes: Any) -> Study:
    """Makes a study of a file's content; see `read_study`."""
    require(isinstance(content, Mapping), "config", type(content).__name__, "a mapping of fields to values")
    content = {"name": default_name, **content, **{k: v for k, v in changes.items() if v is not None}}
    known = {field.name: field for field in dataclasses.fields(Study)}
    unknown = sorted(set(content) - set(known))
    require(not unknown, "fields", unknown, f"among {', '.join(known)}")
    missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in content]
    require(not missing, "fields", sorted(content), f"complete; {', '.join(missing)} are missing")
    for key in ("batch_sizes", "final_seeds", "targets"):
        if key in content:
            require(isinstance(content[key], (list, tuple)), key, content[key], "a list of numbers")
            content[key] = tuple(content[key])
    require(
        isinstance(content["arms"], Mapping) and bool(content["arms"]), "arms", content["arms"], "a mapping of arms"
    )
    content["arms"] = tuple(_make_arm(name, arm) for name, arm in content["arms"].items())
    study = Study(**content)
    _check(study)
    return study


def _make_arm(name: str, content: Any) -> Arm:
    where = f"arms.{name}"
    require(isinstance(content, Mapping), where, content, "a mapping")
    allowed = {field.name for field in dataclasses.fields(Arm)} - {"name"}
    unknown = sorted(set(content) - allowed)
    require(not unknown, where, unknown, f"made of {', '.join(sorted(allowed))}")
    require("optimizer" in content, where, dict(content), "given an optimizer")
    space = {key: _make_dimension(f"{where}.space.{key}", value) for key, value in (content.get("space") or {}).items()}
    return Arm(**{**content, "name": str(name), "fixed": dict(content.get("fixed") or {}), "space": space})


def _make_dimension(where: str, value: Any) -> Dimension:
    if isinstance(value, (list, tuple)):
        require(len(value) > 0, where, value, "a list of choices, or {log: [low, high]} or {linear: [low, high]}")
        return Dimension("choice", choices=tuple(value))
    scale, pair = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else (None, None)
    pair = pair if isinstance(pair, (list, tuple)) else ()
    ordered = len(pair) == 2 and all(isinstance(v, (int, float)) for v in pair)
    rule = "a list of choices, or {log: [low, high]} or {linear: [low, high]} with low below high, and above 0 for log"
    require(ordered and scale in ("log", "linear"), where, value, rule)
    low, high = map(float, pair)
    require(low < high and (scale == "linear" or low > 0), where, value, rule)
    return Dimension(str(scale), low, high)


def _check(study: Study) -> None:
    for name in ("updates", "trials", "evaluations", "validation_examples"):
        value = getattr(study, name)
        require(isinstance(value, int) and value > 0, name, value, "a whole number above 0")
    for name in ("batch_sizes", "final_seeds"):
        values = getattr(study, name)
        fits = values and all(isinstance(v, int) and v >= (name == "batch_sizes") for v in values)
        require(bool(fits) and len(set(values)) == len(values), name, values, "different whole numbers, at least one")
    for name in ("norm_examples", "micro_batch_size", "image_size", "sharpness_examples"):
        value = getattr(study, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        require(value is None or whole, name, value, "a whole number above 0, or left out")
    for value in (study.trains_at, *study.targets):
        name = "trains_at" if value is study.trains_at else "targets"
        number(name, value, lambda v: 0 <= v <= 1, "an accuracy from 0 to 1")
    if study.robustness is not None:
        number("robustness", study.robustness, lambda v: 0 < v < math.inf, "a number above 0, or left out")
    flag("record_agreement", study.record_agreement)
    whole = isinstance(study.seed, int) and not isinstance(study.seed, bool) and study.seed >= 0
    require(whole, "seed", study.seed, "a whole number of 0 or more")
    policies = ("float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")
    require(
        study.mixed_precision in policies, "mixed_precision", study.mixed_precision, f"one of {', '.join(policies)}"
    )
    require(study.seed not in study.final_seeds, "final_seeds", study.final_seeds, f"other than the seed {study.seed}")
    require(study.augment in AUGMENTATIONS, "augment", study.augment, f"one of {', '.join(AUGMENTATIONS)}")
    require(study.evaluations <= study.updates, "evaluations", study.evaluations, f"at most updates={study.updates}")
    models.canonical_name(study.model)
    for arm in study.arms:
        where = f"arms.{arm.name}"
        require(arm.optimizer in OPTIMIZERS, f"{where}.optimizer", arm.optimizer, f"one of {', '.join(OPTIMIZERS)}")
        require(arm.schedule in SHAPES, f"{where}.schedule", arm.schedule, f"one of {', '.join(SHAPES)}")
        require(0 <= arm.warmup < 1, f"{where}.warmup", arm.warmup, "a share of the updates from 0 to below 1")
        require(arm.scaling in SCALINGS, f"{where}.scaling", arm.scaling, f"one of {', '.join(SCALINGS)}")
        whole = isinstance(arm.passes, int) and arm.passes > 0
        require(whole, f"{where}.passes", arm.passes, "a whole number above 0")
        augmentations = (None, *AUGMENTATIONS)
        require(arm.augment in augmentations, f"{where}.augment", arm.augment, f"one of {', '.join(AUGMENTATIONS)}")
        check_adversarial(f"{where}.adversarial", arm.adversarial)
        denominator = denominator_of(arm.fixed)
        require(denominator in DENOMINATORS, f"{where}.denominator", denominator, f"one of {', '.join(DENOMINATORS)}")
        alone = arm.adversarial is None or denominator == MEAN
        require(alone, f"{where}.denominator", denominator, f"{MEAN} with adversarial images")
        given, row = {*arm.fixed, *arm.space}, OPTIMIZERS[arm.optimizer]
        both = sorted(set(arm.fixed) & set(arm.space))
        require(not both, where, both, "free of hyper-parameters that are both fixed and searched")
        wrong = sorted(given - row.parameters)
        require(not wrong, where, wrong, f"made of the hyper-parameters {', '.join(sorted(row.parameters))}")
        lacking = sorted(row.required - given)
        if lacking:
            raise ValueError(message(where, f"given {', '.join(lacking)}", sorted(given)))
        alternatives = sorted(given & set(row.either))
        require(not row.either or len(alternatives) == 1, where, alternatives, f"given one of {', '.join(row.either)}")


def _plain_arm(arm: Arm) -> dict[str, Any]:
    space = {
        name: list(d.choices) if d.scale == "choice" else {d.scale: [d.low, d.high]} for name, d in arm.space.items()
    }
    plain: dict[str, Any] = {"optimizer": arm.optimizer, "warmup": arm.warmup, "schedule": arm.schedule}
    own = {"scaling": arm.scaling, "passes": arm.passes, "augment": arm.augment, "adversarial": arm.adversarial}
    defaults = {field.name: field.default for field in dataclasses.fields(Arm)}
    plain |= {name: value for name, value in own.items() if value != defaults[name]}
    return {**plain, "fixed": dict(arm.fixed), "space": space}
