"""Algorithm 1 of the ConAdv paper written out: plain loops, the weights of every step kept, a whole model a stream.

It knows nothing of auxiliary batch norms, interception, the pipeline or stale weights: each stream has a plain Keras
model of its own, whose weights other than batch norm's are overwritten with the shared ones after every update. Random
targets and starting points are drawn with the seeds of the steps, everything else is NumPy and one eager gradient tape
for each pass.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from reference import Reference

from tf_largebatch import per_example_gradient_norms
from tf_largebatch.core.pgd import random_start, random_wrong_classes
from tf_largebatch.training.step_seed import Purpose, step_seed


class SlowConAdv:
    """One trainer; `clean` is the model under training.

    Args:
        make: gives the same freshly made model whenever it is called.
        loss: mean cross-entropy of integer labels.
        tau: staleness.
        clars: arguments of the CLARS reference; None for SGD.
        lr, momentum: of either.
        augment: makes the third stream.
        epsilon, step_size: in units of 1/255, for inputs in [0, 255].
    """

    def __init__(
        self,
        make,
        loss,
        tau,
        lr,
        momentum=0.9,
        clars=None,
        augment=None,
        epsilon=4.0,
        step_size=4.0,
        num_steps=1,
        targeted=True,
        start=0.8,
        weight=1.0,
        seed=0,
        classes=3,
    ):
        self.clean, self.adversarial = make(), make()
        self.augmented = make() if augment else None
        self.models = [m for m in (self.clean, self.adversarial, self.augmented) if m is not None]
        self.loss, self.tau, self.lr, self.momentum, self.clars = loss, tau, lr, momentum, clars
        self.augment, self.epsilon, self.step_size, self.num_steps = augment, epsilon, step_size, num_steps
        self.targeted, self.start, self.weight, self.seed, self.classes = targeted, start, weight, seed, classes
        self.history = []
        self.velocity = {}

    def step(self, x, y):
        t = len(self.history)
        self.history.append([w.copy() for w in self.adversarial.get_weights()])
        x_adv = self.attack(x, y, self.history[max(t - self.tau, 0)], t)
        passes = [(self.clean, x, 1.0), (self.adversarial, x_adv, self.weight)]
        if self.augment:
            passes.append((self.augmented, self.augment(x), 1.0))
        gradients, norms = {}, {}
        for model, images, weight in passes:
            mean_norms = None
            if self.clars is not None:
                mean_norms = per_example_gradient_norms(model, images, y, self.loss)
            with tf.GradientTape() as tape:
                value = self.loss(y, model(images, training=True))
            found = tape.gradient(value, [v.value for v in model.trainable_variables])
            for i, (v, g) in enumerate(zip(model.trainable_variables, found, strict=True)):
                key = (model if is_batch_norm(v) else None, i)
                gradients[key] = gradients.get(key, 0.0) + weight * g.numpy()
                if mean_norms is not None:
                    norms[key] = norms.get(key, 0.0) + weight * float(np.mean(mean_norms[v.path]))
        for (owner, i), g in gradients.items():
            owners = self.models if owner is None else [owner]
            w = self.updated((owner, i), owners[0].trainable_variables[i].numpy(), g, norms.get((owner, i)))
            for model in owners:
                model.trainable_variables[i].assign(w)
        return x_adv

    def updated(self, key, w, g, s):
        if self.clars is None:
            self.velocity[key] = self.momentum * self.velocity.get(key, 0.0) - self.lr * g
            return w + self.velocity[key]
        if key not in self.velocity:
            adapted = w.ndim > 1
            self.velocity[key] = Reference(w, self.lr, beta=self.momentum, adapted=adapted, **self.clars)
        self.velocity[key].step(g, s)
        return self.velocity[key].w

    def attack(self, x, y, weights, t):
        """x^ at weights of another time, with the batch's own statistics; the model is as before afterwards."""
        now = self.adversarial.get_weights()
        self.adversarial.set_weights(weights)
        target = y
        if self.targeted:
            wrong = random_wrong_classes(y, self.classes, step_seed(self.seed, t, Purpose.TARGETS))
            target = wrong.numpy().astype(y.dtype)
        seed = step_seed(self.seed, t, Purpose.START)
        x_adv = random_start(x, self.epsilon, 0.0, 255.0, self.start, "linf", seed).numpy()
        for _ in range(self.num_steps):
            images = tf.constant(x_adv)
            with tf.GradientTape() as tape:
                tape.watch(images)
                probability = tf.exp(-own_cross_entropy(self.loss, target, self.adversarial(images, training=True)))
                # It increases with the cross-entropy, so that each image's gradient has the direction of the paper's.
                # Batch norm couples the images: the objective weighs them equally, the cross-entropy does not.
                value = tf.reduce_sum(tf.math.log1p(-probability) - tf.math.log(probability))
            direction = np.sign(tape.gradient(value, images).numpy())
            x_adv = x_adv - self.step_size * direction if self.targeted else x_adv + self.step_size * direction
            x_adv = np.clip(np.clip(x_adv, x - self.epsilon, x + self.epsilon), 0.0, 255.0)
        self.adversarial.set_weights(now)
        return x_adv


def own_cross_entropy(loss, y, scores):
    """The loss of each example by itself."""
    return tf.stack([loss(y[i : i + 1], scores[i : i + 1]) for i in range(len(y))])


def is_batch_norm(variable):
    return "batch_normalization" in variable.path
