"""Batches of the next step beside this step's, and views of the same image."""

from __future__ import annotations

import imagenet_like
import model_garden_runs as runs
import numpy as np
import pytest
import tensorflow as tf
from official.core import task_factory

from tf_largebatch.model_garden import registry_imports  # noqa: F401  (it registers)
from tf_largebatch.model_garden.pipeline import Views, with_next_batch


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_each_replica_gets_its_own_next_batch(replicas):
    dataset = tf.data.Dataset.range(24).map(lambda i: (i, -i)).batch(2, drop_remainder=True)
    pairs = list(with_next_batch(dataset, replicas).as_numpy_iterator())
    assert len(pairs) == 12 - replicas
    for number, ((now, now_negative), (coming, _)) in enumerate(pairs):
        assert now.tolist() == [2 * number, 2 * number + 1] and (now_negative == -now).all()
        assert (coming == now + 2 * replicas).all()


def test_views_keep_the_image_first():
    class Brighter:
        def distort(self, image):
            return image + 1

    image = tf.random.uniform([4, 4, 3])
    views = Views([Brighter(), Brighter()]).distort(image).numpy()
    assert views.shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(views[0], image)
    np.testing.assert_allclose(views[2], image + 1)


def test_a_batch_that_does_not_divide_among_the_replicas(tmp_path):
    records = imagenet_like.write_records(tmp_path / "records")
    params = runs.params_of("clars_resnet_imagenet", runs.merged(runs.tiny(records, batch_size=9), runs.RESNET))
    task = task_factory.get_task(params.task)
    context = tf.distribute.InputContext(num_input_pipelines=1, num_replicas_in_sync=2)
    message = r"task\.train_data\.global_batch_size must be a multiple of the 2 replicas .*=9: take 8 or 10"
    with pytest.raises(ValueError, match=message):
        task.build_inputs(params.task.train_data, context)
