"""Config dataclasses: derivation after overrides, what is refused and how, and what reaches the optimizer."""

from __future__ import annotations

import model_garden_runs as runs
import pytest
from official.core import exp_factory, train_utils
from official.modeling import hyperparams, optimization

from tf_largebatch.model_garden import registry_imports  # noqa: F401  (it registers)
from tf_largebatch.model_garden.checks import check_divides

EXPERIMENTS = [
    "clars_resnet_imagenet",
    "clars_densenet_imagenet",
    "clars_mobilenet_imagenet",
    "lars_resnet_imagenet",
    "conadv_resnet_imagenet",
    "conadv_efficientnet_imagenet",
    "clars_resnet_cifar10",
    "conadv_resnet_cifar10",
]


def batch(size):
    return {"task": {"train_data": {"global_batch_size": size}}}


def decay(params):
    return params.trainer.optimizer_config.learning_rate.polynomial


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_registered_and_valid(name):
    params = runs.params_of(name)
    assert params.trainer.train_steps > 0
    optimizer = optimization.OptimizerFactory(params.trainer.optimizer_config)
    assert optimizer.build_optimizer(optimizer.build_learning_rate()).get_config()["momentum"] > 0


@pytest.mark.parametrize("name", ["clars_resnet_cifar10", "conadv_resnet_cifar10"])
def test_a_single_file_is_read_once_at_a_time(name):
    """Model Garden repeats the file names and reads `cycle_length` of them side by side: here all the same one."""
    params = runs.params_of(name)
    assert params.task.train_data.cycle_length == params.task.validation_data.cycle_length == 1


def test_another_batch_size_moves_rate_and_steps():
    at_4k, at_8k = (runs.params_of("clars_resnet_imagenet", batch(size)) for size in (4096, 8192))
    assert decay(at_4k).initial_learning_rate == pytest.approx(0.128 * 16)
    assert decay(at_8k).initial_learning_rate == pytest.approx(0.128 * 32)
    assert (at_4k.trainer.train_steps, at_8k.trainer.train_steps) == (28151, 14075)  # round(90 * 1281167 / batch)
    assert (at_4k.trainer.steps_per_loop, at_8k.trainer.steps_per_loop) == (312, 156)
    assert decay(at_8k).decay_steps == 14075 and at_8k.trainer.optimizer_config.warmup.type is None


def test_warmup_moves_too_and_the_decay_follows_it():
    params = runs.params_of("lars_resnet_imagenet", batch(8192))
    warmup = params.trainer.optimizer_config.warmup
    assert (warmup.type, warmup.linear.warmup_steps) == ("linear", 782)  # 5 epochs
    assert decay(params).decay_steps + 782 == params.trainer.train_steps and decay(params).offset == 782
    schedule = optimization.OptimizerFactory(params.trainer.optimizer_config).build_learning_rate()
    assert float(schedule(391)) == pytest.approx(0.128 * 32 / 2)
    assert float(schedule(782)) == pytest.approx(0.128 * 32)
    assert float(schedule(params.trainer.train_steps)) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("size", "peak", "epochs"),
    [(8192, 10, 5), (16384, 25, 5), (32768, 31.2, 25), (65536, 43, 41), (98304, 43, 41)],
)
def test_table_of_the_conadv_authors(size, peak, epochs):
    params = runs.params_of("conadv_resnet_imagenet", batch(size))
    assert decay(params).initial_learning_rate == peak
    assert params.trainer.optimizer_config.warmup.linear.warmup_steps == round(epochs * 1281167 / size)


def test_what_the_user_says_stays():
    override = {
        "trainer": {
            "train_steps": 1301,
            "steps_per_loop": 7,
            "optimizer_config": {
                "learning_rate": {"polynomial": {"initial_learning_rate": 3.0}},
                "warmup": {"type": "linear", "linear": {"warmup_steps": 11}},
            },
        }
    }
    params = runs.params_of("conadv_resnet_imagenet", override, batch(8192))
    assert (params.trainer.train_steps, params.trainer.steps_per_loop) == (1301, 7)
    assert decay(params).initial_learning_rate == 3.0
    assert params.trainer.optimizer_config.warmup.linear.warmup_steps == 11
    assert decay(params).decay_steps == 1290


def test_intervals_are_whole_loops():
    params = runs.params_of("clars_resnet_cifar10", {"trainer": {"steps_per_loop": 20}})
    assert (params.trainer.summary_interval, params.trainer.checkpoint_interval) == (80, 80)  # of an epoch of 97


def test_constant_rate_is_left_alone():
    learning_rate = {"type": "constant", "constant": {"learning_rate": 0.5}}
    params = runs.params_of(
        "clars_resnet_imagenet", {"trainer": {"optimizer_config": {"learning_rate": learning_rate}}}
    )
    assert optimization.OptimizerFactory(params.trainer.optimizer_config).build_learning_rate() == 0.5


def test_the_resolved_configuration_is_saved_and_read_back(tmp_path):
    params = runs.params_of("conadv_resnet_imagenet", batch(8192))
    train_utils.serialize_config(params, str(tmp_path))
    again = exp_factory.get_exp_config("conadv_resnet_imagenet")
    again = hyperparams.override_params_dict(again, str(tmp_path / "params.yaml"), is_strict=True)
    again.validate()
    assert again.as_dict() == params.as_dict()


def test_the_hosts_tables_keep_their_entries():
    assert {"sgd", "lars", "lamb", "clars", "lars_lb"} <= set(optimization.optimizer_factory.LEGACY_OPTIMIZERS_CLS)
    plain = exp_factory.get_exp_config("resnet_imagenet")
    assert "clars" not in vars(plain.trainer.optimizer_config.optimizer)
    assert plain.trainer.train_steps == 90 * (1281167 // 4096)


def at(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


OPTIMIZATION = "trainer.optimizer_config"
OPTIMIZER = f"{OPTIMIZATION}.optimizer"
RATE = f"{OPTIMIZATION}.learning_rate"
STEPWISE = {"type": "stepwise", "stepwise": {"boundaries": [3, 5], "values": [1.0, 1.0, 1.0]}}
DATA = "task.train_data"
INTEGER = "must be an integer"
NUMBER = "must be a finite number"
SECTION = "must be a section with fields of its own"

# field, value, what the message says after the field's name
REFUSED = [
    ("task.conadv.epsilom", 4, r"is not a field .*did you mean epsilon"),
    ("task.trian_data", {}, r"is not a field .*did you mean train_data"),
    (f"{OPTIMIZER}.clars.etta", 1, r"is not a field .*eta"),
    # Sections that are null until they are given.
    (f"{OPTIMIZATION}.ema.avg", 0.5, r"is not a field .*average_decay"),
    ("task.conadv.augment.typ", "autoaug", r"is not a field .*did you mean type"),
    # Text, booleans, null and fractions where numbers belong.
    ("trainer.train_steps", 2.5, INTEGER),
    ("trainer.train_steps", "ten", INTEGER),
    ("trainer.steps_per_loop", True, INTEGER),
    ("trainer.summary_interval", 8.0, INTEGER),
    (f"{DATA}.global_batch_size", None, INTEGER),
    ("task.model.num_classes", "ten", INTEGER),
    ("recipe.train_examples", "many", INTEGER),
    ("recipe.epochs", float("nan"), NUMBER),
    (f"{OPTIMIZER}.clars.momentum", "x", NUMBER),
    (f"{OPTIMIZER}.clars.eta", None, NUMBER),
    (f"{RATE}.polynomial.power", None, NUMBER),
    (f"{RATE}.polynomial.initial_learning_rate", "high", NUMBER),
    ("task.conadv.enabled", "yes", "must be true or false"),
    ("task.model.input_size", "big", "must be a list of integers"),
    (f"{DATA}.input_path", 5, "must be a list of texts or text"),
    ("trainer", None, SECTION),
    ("trainer", 3, SECTION),
    ("task.conadv", True, SECTION),
    (f"{OPTIMIZATION}.warmup", None, SECTION),
    (f"{RATE}.polynomial", None, SECTION),
    # Numbers out of their range.
    ("trainer.train_steps", 0, "must be 1 or more"),
    ("trainer.steps_per_loop", 0, "must be 1 or more"),
    ("trainer.checkpoint_interval", -1, "must be 1 or more"),
    ("trainer.validation_steps", 0, "must be 1 or more, or -1 for the whole data set"),
    (f"{DATA}.global_batch_size", 0, "must be 1 or more"),
    (f"{DATA}.shuffle_buffer_size", 0, "must be 1 or more"),
    ("task.validation_data.cycle_length", 0, "must be 1 or more"),
    ("task.losses.label_smoothing", 1.0, "must be at least 0 and below 1"),
    ("task.model.dropout_rate", -0.5, "must be at least 0 and below 1"),
    ("task.losses.l2_weight_decay", -1, "must be 0 or more"),
    ("task.model.input_size", [32, 32], r"must be \[height, width, 3\]"),
    ("task.model.num_classes", 1, "must be 2 or more"),
    (f"{OPTIMIZATION}.ema.average_decay", 2, "must be from 0 to 1"),
    ("recipe.base_learning_rate", -1, "must be above 0"),
    ("recipe.epochs", 0, "must be above 0"),
    ("recipe.warmup_epochs", 90, "must be null, or 0 or more and below the 90 epochs"),
    ("runtime.num_gpus", -1, "must be 0 or more"),
    # Schedules.
    (f"{RATE}.polynomial.initial_learning_rate", -0.5, f"{NUMBER} of 0 or more"),
    (f"{RATE}.polynomial.end_learning_rate", -1, f"{NUMBER} of 0 or more"),
    (f"{RATE}.polynomial.decay_steps", 0, "must be an integer of 1 or more"),
    (f"{RATE}.polynomial.offset", -1, "must be an integer of 0 or more"),
    (RATE, {"type": "stepwise"}, r"\.stepwise\.boundaries must be a list of increasing integers"),
    (RATE, at("stepwise.boundaries", [5, 3]) | {"type": "stepwise"}, r"\.stepwise\.boundaries must be .*increasing"),
    (RATE, at("stepwise.values", [1.0, 1.0]) | {"type": "stepwise"}, r"\.stepwise\.boundaries must be"),
    (RATE, {"type": "exponential"}, r"\.exponential\.decay_rate must be a finite number"),
    (RATE, {"type": "constant", "constant": {"learning_rate": -1}}, r"\.constant\.learning_rate must be a finite"),
    (f"{OPTIMIZATION}.warmup", {"type": "linear", "linear": {"warmup_steps": 0}}, r"\.linear\.warmup_steps must be an"),
    # Choices.
    (f"{OPTIMIZER}.type", "clar", r"must be one of .*='clar': perhaps clars or lars is meant"),
    (f"{RATE}.type", "poly", "must be one of .*='poly'"),
    (f"{RATE}.type", None, "must be one of .*=None"),
    ("task.model.backbone.type", "resnext", "must be one of .*='resnext'"),
    (f"{DATA}.dtype", "float33", "must be one of float32, bfloat16, float16"),
    (f"{DATA}.file_type", "csv", "must be one of tfrecord, tfrecord_compressed"),
    (f"{DATA}.is_training", False, "must be true"),
    ("runtime.distribution_strategy", "foo", "must be one of mirrored"),
    ("runtime.mixed_precision_dtype", "float17", "must be one of null, float32"),
    ("recipe.table", "goyal", "must be null or conadv; .*'goyal'"),
    # Arguments of the optimizers and of the attack, by their own rules.
    (f"{OPTIMIZER}.clars.eta", -1, "eta must be"),
    (f"{OPTIMIZER}.clars.momentum", 1.0, "momentum must be"),
    (f"{OPTIMIZER}.clars.max_rate", 0, "max_rate must be"),
    (f"{OPTIMIZER}.clars.norm_exponent", 2.0, "norm_exponent must be"),
    (f"{OPTIMIZER}.clars.unadapted_rate_factor", -1.0, "unadapted_rate_factor must be"),
    (f"{OPTIMIZER}.clars.exclude_from_weight_decay", ["("], "exclude_from_weight_decay must be"),
    ("task.conadv", {"enabled": True, "epsilon": -1}, r"\.epsilon must be a finite .*=-1"),
    ("task.conadv", {"enabled": True, "staleness": -1}, r"\.staleness must be an integer of 0 or"),
    ("task.conadv", {"enabled": True, "random_start": 2}, r"\.random_start must be a probability"),
    ("task.conadv", {"enabled": True, "norm": "l1"}, r"\.norm must be .*linf.*l2"),
    ("task.conadv", {"enabled": True, "attack": "fgsm"}, r"\.attack must be .*pgd.*noise"),
    ("task.conadv", {"enabled": True, "value_range": [0, 1]}, r"\.value_range must be 6 numbers"),
    ("task.conadv", {"enabled": True, "augment": {"type": "ssd"}}, r"\.augment\.type must be"),
    # What does not go together.
    (f"{DATA}.input_path", "", "must be given"),
    (f"{DATA}.tfds_name", "cifar10", "input_path must be empty with"),
    ("task.gradient_norms.mode", "exakt", "must be one of exact, sampled, replica"),
    ("task.gradient_norms.mode", "sampled", "norm_examples must be 1 or more .*None"),
    ("task.gradient_norms.norm_examples", 8, "must be null unless mode is sampled"),
    ("task.micro_batch_size", 0, "must be null or 1 or more"),
    ("task.micro_batch_size", 3, "must be a divisor of the global batch of 4096; .*=3"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_refusals_name_the_field(path, value, message):
    with pytest.raises((KeyError, ValueError), match=message) as error:
        runs.params_of("clars_resnet_imagenet", at(path, value))
    # Where one field makes another one necessary, that one is named.
    assert path.rsplit(".", 1)[0] in str(error.value)


def test_other_schedules_are_derived_too():
    """From the peak, over the steps after the warmup, like the polynomial one."""
    for kind, more in (("cosine", {}), ("exponential", {"decay_rate": 0.5}), ("power_linear", {})):
        params = runs.params_of("lars_resnet_imagenet", at(RATE, {"type": kind, kind: more}))
        schedule = params.trainer.optimizer_config.learning_rate.get()
        steps = getattr(schedule, "decay_steps", None) or schedule.total_decay_steps
        assert schedule.initial_learning_rate == pytest.approx(0.128 * 16)
        assert steps + schedule.offset == params.trainer.train_steps and schedule.offset > 0
        optimization.OptimizerFactory(params.trainer.optimizer_config).build_learning_rate()
    runs.params_of("clars_resnet_imagenet", at(RATE, STEPWISE))


def test_intervals_that_are_no_whole_loops():
    with pytest.raises(ValueError, match=r"trainer\.summary_interval must be a multiple of the 5 steps of"):
        runs.params_of("clars_resnet_imagenet", {"trainer": {"steps_per_loop": 5, "summary_interval": 7}})


def test_float16_hides_the_moving_average_from_model_garden():
    ema = {"trainer": {"optimizer_config": {"ema": {"average_decay": 0.9}}}}
    for dtype in (None, "bfloat16"):
        runs.params_of("clars_resnet_imagenet", ema, at("runtime.mixed_precision_dtype", dtype))
    message = r"trainer\.optimizer_config\.ema must be null .*'float16'.*: take bfloat16 .*leave out"
    with pytest.raises(ValueError, match=message):
        runs.params_of("clars_resnet_imagenet", ema, at("runtime.mixed_precision_dtype", "float16"))


def test_micro_batches_refuse_synchronized_batch_norms():
    sync = at("task.model.norm_activation.use_sync_bn", True)
    with pytest.raises(ValueError, match=r"use_sync_bn must be false with task\.micro_batch_size"):
        runs.params_of("clars_resnet_imagenet", sync, at("task.micro_batch_size", 64))


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match=r"field must be a multiple of the 8 replicas .*=100: take 96 or 104"):
        check_divides("field", 100, 8)
