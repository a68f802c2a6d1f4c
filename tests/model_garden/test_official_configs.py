"""The header of each official configuration agrees with the values that the file resolves to."""

from __future__ import annotations

import re

import model_garden_runs as runs
import pytest

from official_configs import CONFIGS, FILES, content_of, experiment_of, header_of, text_of
from tf_largebatch.model_garden import registry_imports  # noqa: F401  (it registers)

LARGE = [path for path in FILES if path.parent.name != "small"]
SMALL = [path for path in FILES if path.parent.name == "small"]
# Tensors of fewer than two dimensions, which is what null means.
BATCH_NORMS_AND_BIASES = None


class Resolved:
    """The parts of a resolved configuration that headers speak of."""

    def __init__(self, path):
        self.params = params = runs.params_of(experiment_of(path), content_of(path))
        self.task, self.trainer, self.recipe = params.task, params.trainer, params.recipe
        self.data, self.conadv = params.task.train_data, params.task.conadv
        optimization = params.trainer.optimizer_config
        self.type, self.optimizer = optimization.optimizer.type, optimization.optimizer.get()
        self.rate_type, self.rate = optimization.learning_rate.type, optimization.learning_rate.get()
        self.warmup = optimization.warmup
        self.batch = self.data.global_batch_size

    def epochs(self, steps):
        return steps * self.batch / self.recipe.train_examples

    @property
    def warmup_steps(self):
        return self.warmup.linear.warmup_steps if self.warmup.type == "linear" else 0


def number(text):
    return float(text.replace(",", ""))


def same(found, said):
    assert found == pytest.approx(number(said), rel=1e-12)


def peak_of(r, peak, warmup):
    assert r.rate_type == "polynomial"
    same(r.rate.initial_learning_rate, peak)
    if warmup is None:
        assert r.warmup.type is None
    else:
        assert r.warmup_steps == max(1, round(number(warmup) * r.recipe.train_examples / r.batch))


def epochs_of(r, said):
    same(r.recipe.epochs, said)
    assert abs(r.epochs(r.trainer.train_steps) - number(said)) < 0.5
    assert r.rate.decay_steps == r.trainer.train_steps - r.warmup_steps


def momentum_of(r, form, said):
    same(r.optimizer.momentum, said)
    assert r.optimizer.classic_momentum == (form == "classic") and not r.optimizer.nesterov


def decay_of(r, said, where):
    same(r.optimizer.weight_decay_rate, said)
    assert r.task.losses.l2_weight_decay == 0
    expected = [] if where == "on every tensor" else BATCH_NORMS_AND_BIASES
    assert r.optimizer.exclude_from_weight_decay == expected


def adapted(r):
    """The others keep the plain learning rate, as in the papers."""
    assert r.optimizer.exclude_from_layer_adaptation is BATCH_NORMS_AND_BIASES
    assert r.optimizer.unadapted_rate_factor == 1


def equal(found, expected):
    assert found == expected


# What the entry "Values" may say, and what the resolved configuration then has. A phrase that is none of these fails.
VALUES = {
    r"(CLARS|LARS)": lambda r, name: equal(r.type, {"CLARS": "clars", "LARS": "lars_lb"}[name]),
    r"exact norms": lambda r: equal(r.task.gradient_norms.mode, "exact"),
    r"peak ([\d.]+) (?:without warmup|after ([\d.]+) epochs of warmup)": peak_of,
    r"polynomial decay of power ([\d.]+) to ([\de.-]+)": lambda r, power, end: (
        same(r.rate.power, power),
        same(r.rate.end_learning_rate, end),
    ),
    r"(\d+) epochs": epochs_of,
    r"([\d,]+) steps": lambda r, said: same(r.trainer.train_steps, said),
    r"(classic|popular) momentum ([\d.]+)": momentum_of,
    r"eta ([\d.]+)": lambda r, said: same(r.optimizer.eta, said),
    r"epsilon ([\de.-]+)": lambda r, said: same(r.optimizer.epsilon, said),
    r"cap ([\d.]+)": lambda r, said: same(r.optimizer.max_rate, said),
    r"no cap": lambda r: equal(r.optimizer.max_rate, None),
    r"layer-wise rates except on batch norms and biases": adapted,
    r"weight decay ([\de.-]+) (on every tensor|except on batch norms and biases)": decay_of,
    r"label smoothing ([\d.]+)": lambda r, said: same(r.task.losses.label_smoothing, said),
    r"no label smoothing": lambda r: equal(r.task.losses.label_smoothing, 0.0),
    r"batch-norm momentum ([\d.]+)": lambda r, said: same(r.task.model.norm_activation.norm_momentum, said),
    r"(float32|bfloat16)": lambda r, said: (
        equal(r.data.dtype, said),
        equal(r.params.runtime.mixed_precision_dtype or "float32", said),
    ),
}
# Each header states at least these.
ALWAYS = (
    "eta",
    "epsilon",
    "cap",
    "momentum",
    "weight decay",
    "layer-wise",
    "peak",
    "power",
    "label smoothing",
    "float",
)

ATTACK = {
    r"PGD in the L-inf ball": lambda r: equal(
        (r.conadv.enabled, r.conadv.attack, r.conadv.norm), (True, "pgd", "linf")
    ),
    r"(\d+) step": lambda r, said: same(r.conadv.num_steps, said),
    r"epsilon ([\d.]+) and step size ([\d.]+) in units of 1/255": lambda r, epsilon, step: (
        same(r.conadv.epsilon, epsilon),
        same(r.conadv.step_size, step),
    ),
    r"targeted": lambda r: equal(r.conadv.targeted, True),
    r"random start with probability ([\d.]+)": lambda r, said: same(r.conadv.random_start, said),
    r"staleness (\d+)": lambda r, said: same(r.conadv.staleness, said),
    r"adversarial weight ([\d.]+)": lambda r, said: same(r.conadv.adversarial_weight, said),
    r"streams: clean, adversarial": lambda r: equal(r.conadv.augment, None),
    r"streams: clean, adversarial, AutoAugment": lambda r: equal(
        (r.conadv.augment.type, r.conadv.augment.autoaug.augmentation_name), ("autoaug", "v0")
    ),
}


def check(entry, phrases, resolved):
    """Each phrase of an entry, between semicolons, is one of these and true; returns the patterns that were met."""
    met = []
    for phrase in entry.split("; "):
        (pattern,) = [pattern for pattern in phrases if re.fullmatch(pattern, phrase)] or [None]
        assert pattern is not None, f"the header says {phrase!r}, which no test can check"
        try:
            phrases[pattern](resolved, *re.fullmatch(pattern, phrase).groups())
        except AssertionError as error:
            raise AssertionError(f"the header says {phrase!r}: {error}") from error
        met.append(pattern)
    return met


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_header_states_what_the_file_resolves_to(path):
    title, header = header_of(path)
    resolved = Resolved(path)
    met = check(header["Values"], VALUES, resolved)
    assert len(set(met)) == len(met) and all(any(word in pattern for pattern in met) for word in ALWAYS)
    assert ("CLARS" in header["Values"]) == ("exact norms" in header["Values"])
    assert resolved.conadv.enabled == ("Attack" in header)
    if "Attack" in header:
        assert len(check(header["Attack"], ATTACK, resolved)) == 8
    for words, expected in ((" LARS", "lars_lb"), (" CLARS", "clars")):
        assert resolved.type == expected or words not in title
    assert ("oncurrent adversarial" in title or "ConAdv and" in title) == resolved.conadv.enabled
    assert f"--config_file=official_configs/{path}" in text_of(path)


TIME = (
    r"about (\d+) minutes if a core trains on ([\d,]+) images a second "
    r"\((\d+) million images(?:, (\d) passes each)?\); not measured"
)
BACKBONES = {
    "ResNet-50": ("resnet", "model_id", 50),
    "DenseNet-121": ("densenet", "model_id", 121),
    "MobileNetV2": ("mobilenet", "model_id", "MobileNetV2"),
    "EfficientNet-B2": ("efficientnet", "model_id", "b2"),
}


@pytest.mark.parametrize("path", LARGE, ids=str)
def test_the_header_of_a_paper_s_experiment(path):
    title, header = header_of(path)
    resolved = Resolved(path)
    name, pixels, batch = re.match(r"([\w-]+), ImageNet(?: at (\d+) px)?, batch ([\d,]+): ", title).groups()
    kind, field, value = BACKBONES[name]
    backbone = resolved.task.model.backbone
    assert (backbone.type, getattr(backbone.get(), field)) == (kind, value)
    assert resolved.task.model.input_size == [int(pixels or 224)] * 2 + [3]
    same(resolved.batch, batch)
    cores, share = re.search(r"slice of ([\d,]+) cores \((\d+) images a core\)", header["Hardware"]).groups()
    same(resolved.batch, str(number(cores) * number(share)))
    minutes, rate, millions, passes = re.match(TIME, header["Time"]).groups()
    images = resolved.trainer.train_steps * resolved.batch
    assert round(images / 1e6) == int(millions)
    streams = 1 + resolved.conadv.enabled + (resolved.conadv.augment is not None)
    assert int(passes or 1) == streams + resolved.conadv.enabled  # the attack is one pass more
    assert round(images * int(passes or 1) / number(cores) / number(rate) / 60) == int(minutes)
    assert header["Here"] == "not run at this size" and {"Paper", "Command", "Published"} <= header.keys()


@pytest.mark.parametrize("path", SMALL, ids=str)
def test_the_header_of_a_small_version(path):
    title, header = header_of(path)
    resolved = Resolved(path)
    full = Resolved(re.match(r"\.\./(\S+);", header["Full"])[1])
    assert resolved.data.cycle_length == 1  # more would read the one file that often, side by side
    same(resolved.trainer.train_steps, re.search(r"(\d+) steps:", title)[1])
    assert (resolved.type, resolved.conadv.enabled) == (full.type, full.conadv.enabled)
    assert resolved.task.model.backbone.type == full.task.model.backbone.type
    tuned = ("eta", "max_rate", "name")  # for twenty steps
    kept = vars(full.optimizer).keys() - set(tuned) - set(full.optimizer.RESERVED_ATTR)
    assert {k: getattr(resolved.optimizer, k) for k in kept} == {k: getattr(full.optimizer, k) for k in kept}


@pytest.mark.parametrize("size", ["16k", "32k", "64k", "96k"])
def test_a_baseline_differs_from_conadv_in_the_adversarial_images_only(size):
    baseline = f"lars_resnet50_{size}.yaml" if size != "16k" else "lars_resnet50_16k_conadv_baseline.yaml"
    assert (CONFIGS / baseline).exists()
    one, other = (Resolved(path).params for path in (baseline, f"conadv_resnet50_{size}.yaml"))
    one.task.conadv = other.task.conadv
    assert one.as_dict() == other.as_dict()
