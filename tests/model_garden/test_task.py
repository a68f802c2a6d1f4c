"""The task: norms and ConAdv inside Model Garden's training step, on one device and two, and what is exported.

Steps run eagerly, which spares the tracing of each configuration, unless a test is about the graph. The runs of the
real command line (test_train_main.py) are compiled.
"""

from __future__ import annotations

import imagenet_like
import model_garden_runs as runs
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.vision.ops import preprocess_ops
from official.vision.serving import export_saved_model_lib
from official.vision.tasks import image_classification as model_garden_task
from selection import long

from tf_largebatch.core import pgd
from tf_largebatch.model_garden import registry_imports  # noqa: F401  (it registers)
from tf_largebatch.model_garden.adversary import value_range
from tf_largebatch.model_garden.rebuildable import batch_norms
from tf_largebatch.training.step_seed import Purpose, step_seed

SGD = {"optimizer": {"type": "sgd", "sgd": {"momentum": 0.9}}}
PAPER = {"eta": 0.01, "max_rate": None, "unadapted_rate_factor": 1.0}  # so that the norms decide the rates
CLARS = {"trainer": {"optimizer_config": {"optimizer": {"type": "clars", "clars": PAPER}}}}
RATE = {"learning_rate": {"type": "constant", "constant": {"learning_rate": 0.05}}, "warmup": {"type": None}}
SYNC = {"task": {"model": {"norm_activation": {"use_sync_bn": True}}}}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """24 images: three different batches of eight."""
    return imagenet_like.write_records(tmp_path_factory.mktemp("records") / "train", examples=24)


@pytest.fixture
def frozen_batch_norms(monkeypatch):
    """Batch norms that use the moving averages, and so do not couple examples."""
    build = model_garden_task.ImageClassificationTask.build_model

    def build_frozen(task):
        model = build(task)
        for layer in batch_norms(model):
            layer.trainable = False
        return model

    monkeypatch.setattr(model_garden_task.ImageClassificationTask, "build_model", build_frozen)


def optimizer(**config):
    return {"trainer": {"optimizer_config": {**RATE, **SGD, **config}}}


def conadv(**config):
    return {"task": {"conadv": {"enabled": True, **config}}}


EAGER = {"trainer": {"train_tf_function": False, "train_tf_while_loop": False}}
IN_GRAPH = {"trainer": {"train_tf_function": True, "train_tf_while_loop": True}}


def trained(records, *overrides, steps=3, strategy=None, experiment="clars_resnet_imagenet", seed=0):
    """Model Garden's trainer after some steps, its task and the last loop's logs."""
    params = runs.params_of(experiment, runs.merged(runs.tiny(records), runs.TINY, optimizer(), EAGER, *overrides))
    trainer, task = runs.trainer_of(params, strategy, seed)
    task.initialize(trainer.model)
    with trainer.strategy.scope():
        logs = trainer.train(tf.constant(steps))
    return trainer, task, {key: float(tf.convert_to_tensor(value)) for key, value in logs.items()}


def weights(trainer):
    return [variable.numpy() for variable in trainer.model.variables]


def assert_close(found, expected, rtol=1e-4, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.mark.long
def test_two_replicas_equal_one(records, two_replicas):
    """Batch norms synchronized; sums in another order, which the batch norms amplify: 1e-3 of the weights' scale."""
    one, _, logs_of_one = trained(records, SYNC, CLARS)
    two, _, logs_of_two = trained(records, SYNC, CLARS, strategy=two_replicas)
    assert_close(weights(two), weights(one), rtol=1e-3, atol=1e-3)
    assert logs_of_two["training_loss"] == pytest.approx(logs_of_one["training_loss"], rel=1e-3)


@pytest.mark.parametrize("staleness", [1, long(2)])
def test_two_replicas_equal_one_with_conadv(staleness, records, two_replicas, frozen_batch_norms):
    """Without batch statistics, which the attack takes from each replica, and without randomness."""
    options = runs.merged(conadv(staleness=staleness, **PLAIN_ATTACK), CLARS if staleness == 1 else {})
    one, _, _ = trained(records, options, steps=4)
    two, _, _ = trained(records, options, steps=4, strategy=two_replicas)
    assert_close(weights(two), weights(one))


PLAIN_ATTACK = {"targeted": False, "random_start": 0.0}


@pytest.mark.parametrize("replicas", [1, long(2)])
def test_micro_batches_equal_the_whole_batch(replicas, records, two_replicas, frozen_batch_norms):
    """Where no layer couples examples and nothing is random: attack, gradients, norms and metrics."""
    # A sample of all is all: on two replicas the sampled norms are tested along.
    sampled = {"task": {"gradient_norms": {"mode": "sampled", "norm_examples": 4}}} if replicas == 2 else {}
    options = runs.merged(conadv(**PLAIN_ATTACK) if replicas == 1 else {}, CLARS)
    whole, _, logs = trained(records, options)
    micro = runs.merged(options, {"task": {"micro_batch_size": 2}}, sampled)
    split, _, logs_of_split = trained(records, micro, strategy=two_replicas if replicas == 2 else None)
    assert_close(weights(split), weights(whole))
    norms = [list(trainer.optimizer.gradient_norms().values()) for trainer in (split, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert logs_of_split == pytest.approx(logs, rel=1e-4, abs=1e-6)


def test_each_micro_batch_moves_the_averages_once(records):
    """As the images of so many smaller batches do, one after the other."""
    trainer, _, _ = trained(records, conadv(), {"task": {"micro_batch_size": 4}}, steps=1)
    fresh, task, _ = trained(records, steps=0)
    images, _ = next(iter(task.build_inputs(task.task_config.train_data)))
    for micro_batch in tf.split(images, 2):
        fresh.model(micro_batch, training=True)
    for one, other in zip(batch_norms(trainer.model), batch_norms(fresh.model), strict=True):
        assert_close([one.moving_mean, one.moving_variance], [other.moving_mean, other.moving_variance])


def test_micro_batches_with_batch_norms_on_two_replicas(records, two_replicas):
    trainer, _, logs = trained(records, {"task": {"micro_batch_size": 2}}, steps=1, strategy=two_replicas)
    assert np.isfinite(list(logs.values())).all()
    assert np.abs(batch_norms(trainer.model)[0].moving_mean.numpy()).max() > 0


@pytest.mark.parametrize("use_sync_bn", [long(False), long(True)])
def test_conadv_with_batch_norms_on_two_replicas(use_sync_bn, records, two_replicas):
    sync = {"task": {"model": {"norm_activation": {"use_sync_bn": use_sync_bn}}}}
    trainer, task, logs = trained(records, conadv(), sync, strategy=two_replicas)
    assert np.isfinite(list(logs.values())).all() and logs["perturbation"] > 0
    assert 0 < logs["bn_distance"] < 10
    adversarial = task._auxiliary[0].network
    for main, auxiliary in zip(batch_norms(trainer.model), batch_norms(adversarial), strict=True):
        assert main.gamma is not auxiliary.gamma
        assert np.abs(main.moving_mean.numpy() - auxiliary.moving_mean.numpy()).max() > 0


def test_an_epsilon_of_4_is_the_authors_9():
    """They add 9 * 2 / 255, meant for images in [-1, 1], to standardized ones: about 4 units of 1/255."""
    config = runs.params_of("conadv_resnet_imagenet").task.conadv
    ours = pgd.in_input_units(config.epsilon, value_range(config))
    np.testing.assert_allclose(ours, 4 / np.array(preprocess_ops.STDDEV_RGB), rtol=1e-5)
    np.testing.assert_allclose(ours, 9 * 2 / 255, rtol=0.04)


class Literal:
    """Algorithm 1 step by step, slowly: it keeps the weights of every step and runs each attack on its own."""

    def __init__(self, trainer, task):
        self.main, self.adversarial = trainer.model, task._auxiliary[0].network
        self.config = task.task_config.conadv
        self.history, self.velocity = [], {}

    def adversarial_images(self, images, labels, step):
        present = [v.numpy() for v in self.adversarial.variables]
        then = self.history[max(0, step - self.config.staleness)]
        for variable, value in zip(self.adversarial.variables, then, strict=True):
            variable.assign(value)
        lower, upper = pgd.bounds(value_range(self.config))
        target_seed, start_seed = (step_seed(self.config.seed, step, p) for p in (Purpose.TARGETS, Purpose.START))
        targets = pgd.random_wrong_classes(labels, 10, target_seed)
        epsilon = pgd.in_input_units(self.config.epsilon, value_range(self.config))
        x = pgd.random_start(images, epsilon, lower, upper, self.config.random_start, "linf", start_seed)
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = self.adversarial(x, training=True)
            # log P(other classes) - log P(target): the direction of the cross-entropy, and never vanishing.
            others = tf.reduce_logsumexp(logits - 1e9 * tf.one_hot(targets, 10), axis=-1)
            loss = tf.reduce_sum(others - tf.gather(logits, targets, batch_dims=1))
        x = pgd.step(x, images, tape.gradient(loss, x), epsilon, epsilon, lower, upper, "linf", descend=True)
        for variable, value in zip(self.adversarial.variables, present, strict=True):
            variable.assign(value)
        return x

    def step(self, images, labels, number):
        self.history.append([v.numpy() for v in self.adversarial.variables])
        adversarial = self.adversarial_images(images, labels, number)
        targets = tf.one_hot(labels, 10)
        variables = {v.ref(): v for m in (self.main, self.adversarial) for v in m.trainable_variables}
        with tf.GradientTape() as tape:
            loss = sum(
                tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, network(x, training=True)))
                for network, x in ((self.main, images), (self.adversarial, adversarial))
            )
        gradients = tape.gradient(loss, list(variables.values()))
        for variable, gradient in zip(variables.values(), gradients, strict=True):
            # tf_keras: v <- momentum * v - rate * g ; w <- w + v
            v = 0.9 * self.velocity.get(variable.ref(), 0.0) - 0.05 * gradient
            self.velocity[variable.ref()] = v
            variable.assign_add(v)


@pytest.mark.parametrize("staleness", [long(0), 1, long(3)])
def test_lock_step_with_a_literal_transcription(staleness, records):
    """Five steps over three batches; 1e-4, since sign() turns rounding into whole steps of single pixels."""
    options = conadv(staleness=staleness)
    trainer, _, _ = trained(records, options, IN_GRAPH if staleness == 1 else {}, steps=5)
    fresh, task, _ = trained(records, options, steps=0)
    literal = Literal(fresh, task)
    batches = iter(task.build_inputs(task.task_config.train_data))
    for number in range(5):
        batch = next(batches)
        images, labels = batch[0] if staleness else batch
        literal.step(images, labels, number)
    assert_close(weights(trainer), weights(fresh), rtol=1e-4, atol=1e-4)


def test_without_perturbation_the_adversarial_images_are_the_images(records):
    for staleness in (0, 1):
        _, _, logs = trained(records, conadv(epsilon=0.0, staleness=staleness), steps=2)
        assert logs["perturbation"] == 0
        assert logs["adversarial_loss"] == pytest.approx(logs["clean_loss"], rel=1e-5)
        assert logs["bn_distance"] == pytest.approx(0, abs=1e-5)


def test_the_attack_moves_no_moving_average(records):
    """After one step the main statistics are those of a step without any adversary: one update each."""
    plain, _, _ = trained(records, steps=1)
    attacked, task, _ = trained(records, conadv(num_steps=2), steps=1)
    for one, other in zip(batch_norms(plain.model), batch_norms(attacked.model), strict=True):
        np.testing.assert_allclose(other.moving_mean.numpy(), one.moving_mean.numpy(), rtol=1e-5, atol=1e-6)
    # Of the adversarial statistics, too: 0.9 of the initial 1 is left after one update, 0.81 after two.
    stem = batch_norms(task._auxiliary[0].network)[0]
    batch_variance = (stem.moving_variance.numpy() - 0.9) / 0.1
    assert (batch_variance > 0).all()


@pytest.mark.parametrize("staleness", [1, long(2)])
def test_the_update_does_not_wait_for_the_attack_on_the_coming_batch(staleness, records):
    """No path, of data or control, from the coming images to an assignment of a weight in the step's graph."""
    trainer, task, _ = trained(records, conadv(staleness=staleness), steps=1)
    batch = next(iter(task.build_inputs(task.task_config.train_data)))

    @tf.function(autograph=False)
    def step(inputs):
        trainer.strategy.run(task.train_step, args=(inputs, trainer.model, trainer.optimizer, []))

    with trainer.strategy.scope():
        graph = step.get_concrete_function(batch).graph
    present, _labels, coming, _ = graph.inputs[:4]
    assert coming.shape == present.shape and coming is not present
    handles = {id(external): internal for external, internal in graph.captures}
    of_weights = {id(handles[id(v.handle)]) for v in trainer.model.trainable_variables}

    def reached(start):
        found, open_ends = set(), [start.op]
        consumers = {}
        for op in graph.get_operations():
            for before in [*(t.op for t in op.inputs), *op.control_inputs]:
                consumers.setdefault(before, []).append(op)
        while open_ends:
            op = open_ends.pop()
            if op not in found:
                found.add(op)
                open_ends += consumers.get(op, [])
        return {op for op in found if op.inputs and id(op.inputs[0]) in of_weights and "Read" not in op.type}

    assert reached(present)  # the test sees assignments where there are some
    assert not reached(coming)


@pytest.mark.long
def test_the_step_compiles_under_xla(records):
    """What Model Garden does with `runtime.enable_xla` on a GPU. XLA adds up in another order: 1e-3."""
    losses = []
    # In micro-batches: the loop around the step needs shapes that are known.
    options = runs.merged(conadv(staleness=1), CLARS, {"task": {"micro_batch_size": 4}})
    for jit_compile in (False, True):
        trainer, task, _ = trained(records, options, steps=0)
        batch = next(iter(task.build_inputs(task.task_config.train_data)))
        step = tf.function(task.train_step, jit_compile=True, autograph=False) if jit_compile else task.train_step
        with trainer.strategy.scope():
            arguments = (batch, trainer.model, trainer.optimizer, [])
            losses.append([float(trainer.strategy.run(step, args=arguments)["loss"]) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_three_streams(records):
    options = {"augment": {"type": "autoaug", "autoaug": {"augmentation_name": "test"}}}
    _trainer, task, logs = trained(records, conadv(**options), steps=2)
    assert len(task._auxiliary) == 2 and np.isfinite(logs["training_loss"])
    (views, _), _ = next(iter(task.build_inputs(task.task_config.train_data)))
    clean, _ = next(iter(trained(records, steps=0)[1].build_inputs(task.task_config.train_data)))
    np.testing.assert_allclose(views[:, 0], clean, rtol=1e-5, atol=1e-5)
    assert np.abs(views[:, 1] - views[:, 0]).max() > 0.1


def test_noise_instead_of_the_attack(records):
    _, task, logs = trained(records, conadv(attack="noise"), steps=2)
    assert not task._adversary.needs_next_batch and 0 < logs["perturbation"] < 4


def test_replica_norms_make_clars_lars(records):
    replica = {"task": {"gradient_norms": {"mode": "replica"}}}
    common = {
        "eta": 0.01,
        "weight_decay_rate": 0.0,
        "max_rate": 1.0,
        "unadapted_rate_factor": 1.0,
        "classic_momentum": True,
    }
    clars, _, _ = trained(records, optimizer(optimizer={"type": "clars", "clars": common}), replica, steps=2)
    lars, _, _ = trained(records, optimizer(optimizer={"type": "lars_lb", "lars_lb": common}), steps=2)
    assert_close(weights(clars), weights(lars))


def test_norms_are_those_of_the_examples(records):
    """The mean of the per-example norms is no smaller than the norm of the mean, and a sample of all is all."""
    exact, _, _ = trained(records, CLARS, steps=1)
    sampled = {"task": {"gradient_norms": {"mode": "sampled", "norm_examples": 8}}}
    of_all, _, _ = trained(records, CLARS, sampled, steps=1)
    replica, _, _ = trained(records, CLARS, {"task": {"gradient_norms": {"mode": "replica"}}}, steps=1)
    # By position: each network numbers its layers on.
    exact, of_all, replica = (list(t.optimizer.gradient_norms().values()) for t in (exact, of_all, replica))
    assert len(exact) == len(of_all) == len(replica)
    for one, other, least in zip(exact, of_all, replica, strict=True):
        if least:
            assert one >= least * (1 - 1e-5) and other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("dtype", [long("bfloat16"), "float16"])
def test_mixed_precision_with_moving_average(dtype, records):
    tf_keras.mixed_precision.set_global_policy(f"mixed_{dtype}")
    overrides = [{"runtime": {"mixed_precision_dtype": dtype}, "task": {"train_data": {"dtype": dtype}}}]
    overrides.append(optimizer(ema={"average_decay": 0.9}) if dtype == "bfloat16" else {})
    overrides.append(CLARS)
    trainer, task, logs = trained(records, conadv(staleness=2), *overrides)
    assert np.isfinite(list(logs.values())).all()
    assert task._adversary._waiting.dtype == tf.as_dtype(dtype)
    if dtype == "float16":
        assert isinstance(trainer.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)


@pytest.mark.long
def test_the_export_is_the_clean_model(records, tmp_path):
    trainer, _task, _ = trained(records, conadv(), SYNC, steps=1)
    checkpoint = trainer.checkpoint.save(str(tmp_path / "checkpoint"))
    export_saved_model_lib.export_inference_graph(
        "image_tensor", None, [32, 32], _params_like(records), checkpoint, str(tmp_path / "export")
    )
    served = tf.saved_model.load(str(tmp_path / "export"))
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    outputs = served.signatures["serving_default"](tf.constant(images))
    assert outputs["logits"].shape == (2, 10)
    saved = tf.train.load_checkpoint(str(tmp_path / "export" / "variables" / "variables")).get_variable_to_shape_map()
    count = sum("VARIABLE_VALUE" in key for key in saved)
    assert count == len(trainer.model.variables)
    assert not any("conadv" in key or "snapshots" in key for key in saved)
    x = preprocess_ops.normalize_image(
        tf.cast(images, tf.float32), offset=preprocess_ops.MEAN_RGB, scale=preprocess_ops.STDDEV_RGB
    )
    np.testing.assert_allclose(outputs["logits"], trainer.model(x, training=False), rtol=1e-4, atol=1e-4)


def _params_like(records):
    return runs.params_of(
        "clars_resnet_imagenet", runs.merged(runs.tiny(records), runs.TINY, optimizer(), conadv(), SYNC)
    )


def test_pretrained_weights_reach_all_networks(records, tmp_path):
    source, _, _ = trained(records, steps=2, seed=3)
    path = tf.train.Checkpoint(model=source.model).write(str(tmp_path / "pretrained"))
    options = runs.merged(conadv(staleness=2), {"task": {"init_checkpoint": path}})
    loaded, task, _ = trained(records, options, steps=0)
    assert_close(weights(loaded), weights(source), rtol=0, atol=0)
    auxiliary = [v.numpy() for v in task._auxiliary[0].network.variables]
    assert_close(auxiliary, weights(source), rtol=0, atol=0)
    for past in task._adversary.snapshots:
        live = [v.numpy() for v in task._auxiliary[0].network.trainable_variables]
        assert_close([v.numpy() for v in past], live, rtol=0, atol=0)
