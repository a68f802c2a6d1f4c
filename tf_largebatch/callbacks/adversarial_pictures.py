"""Pictures of clean images, perturbations and adversarial images, side by side."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_largebatch.core.pgd import bounds
from tf_largebatch.files import replacing
from tf_largebatch.plots.curves import style


class AdversarialPictures(keras.callbacks.Callback):
    """Draws some images, their perturbations and their adversarial copies while `ConAdvModel` trains.

    The attack is the model's own, on the classifier as it is evaluated (`adversarial_images(main=True)`), with the
    same targets and starting points every time.

    Args:
        path: The picture. With `{epoch}` in its name there is one for each epoch drawn, else the last replaces it.
        x: Images, [n, height, width, channels], in the model's `value_range`; the first eight are drawn.
        y: Their labels, integers or one-hot.
        class_names: What the classes are called; by default their numbers.
        every: Draw after every so many epochs; None for the end of training alone.

    Raises:
        ValueError: If `every` is no positive integer; when training begins, if the model is no `ConAdvModel`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        x: Any,
        y: Any,
        class_names: Sequence[str] | None = None,
        every: int | None = None,
    ) -> None:
        super().__init__()
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ValueError(f"`every` must be a positive integer or None; received every={every!r}.")
        self.path = os.fspath(path)
        self.x, self.y = np.asarray(x)[:8], np.asarray(y)[:8]
        self.class_names = class_names
        self.every = every
        self._epoch, self._drawn = 0, True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Refuses another model."""
        if not hasattr(self.model, "adversarial_images"):
            raise ValueError(
                f"AdversarialPictures must be given to a ConAdvModel's fit, received {type(self.model).__name__}."
            )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Draws, if it is this epoch's turn."""
        self._epoch, self._drawn = epoch + 1, False
        if self.every is not None and self._epoch % self.every == 0:
            self._draw()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Draws what training ended with."""
        if not self._drawn:
            self._draw()

    def _draw(self) -> None:
        self._drawn = True
        plot_adversarial_images(
            self.x,
            self.model.adversarial_images(self.x, self.y, step=0, main=True),
            self.y,
            model=self.model.model,
            value_range=self.model.value_range,
            class_names=self.class_names,
            title=f"after epoch {self._epoch}",
            path=self.path.replace("{epoch}", f"{self._epoch:04d}"),
        )


def plot_adversarial_images(
    x: Any,
    copies: Any,
    y: Any,
    *,
    model: keras.Model | None = None,
    value_range: Any = (0.0, 255.0),
    class_names: Sequence[str] | None = None,
    title: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draws clean images, perturbations and adversarial images: three rows, one column an image.

    The perturbation is amplified by what the row says, about mid-grey: a grey pixel is unchanged, and the brightest or
    darkest possible one changed by the largest change of all images. Captions say in words what is right and wrong.

    Args:
        x: Clean images, [n, height, width, channels] with 1 or 3 channels.
        copies: Their adversarial copies, same shape.
        y: Their labels, integers [n] or [n, 1], or one-hot [n, classes].
        model: Classifier of such images whose answers are shown, called in inference mode; None for none.
        value_range: `(lower, upper)` of valid images, or one such pair for each channel.
        class_names: What the classes are called; by default their numbers.
        title: Above the picture.
        path: Where to save it as PNG, whole or not at all; None for nowhere.

    Returns:
        The Matplotlib figure.

    Raises:
        ValueError: Unless x and copies are images of the same shape, one or more.
    """
    x, copies, y = np.asarray(x, "float32"), np.asarray(copies, "float32"), np.asarray(y)
    if x.ndim != 4 or x.shape != copies.shape or not len(x) or x.shape[-1] not in (1, 3):
        raise ValueError(
            "x and copies must be images of one shape [n, height, width, 1 or 3]; "
            f"received shapes {x.shape} and {copies.shape}."
        )
    labels = np.argmax(y, axis=-1) if y.ndim == 2 and y.shape[-1] > 1 else y.reshape(-1)
    names = [str(i) for i in range(int(labels.max()) + 1)] if class_names is None else class_names
    clean, attacked = _pixels(x, value_range), _pixels(copies, value_range)
    change = attacked - clean
    largest = float(np.abs(change).max())
    rows = {
        "clean": clean / 255,
        _perturbation_label(largest): 0.5 + change / (2 * largest or 1.0),
        "adversarial": attacked / 255,
    }
    captions = [[_name(names, label) for label in labels], [""] * len(x), [""] * len(x)]
    if model is not None:
        for row, images in ((0, x), (2, copies)):
            said = np.argmax(np.asarray(model(images, training=False)), axis=-1)
            captions[row] = [_caption(names, int(s), int(t)) for s, t in zip(said, labels, strict=True)]
    return _drawn(rows, captions, title, path)


def _drawn(rows: Mapping[str, Any], captions: list[list[str]], title: str, path: Any) -> Any:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = len(next(iter(rows.values())))
    with matplotlib.rc_context(style()):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        figure = Figure(figsize=(max(1.7 * columns + 0.6, 5.0), 7.0), layout=layout)
        FigureCanvasAgg(figure)
        axes = figure.subplots(3, columns, squeeze=False)
        for row, (name, images), texts in zip(axes, rows.items(), captions, strict=True):
            for axis, image, text in zip(row, images, texts, strict=True):
                axis.imshow(np.clip(image, 0, 1).squeeze(-1) if image.shape[-1] == 1 else np.clip(image, 0, 1),
                            cmap="gray", vmin=0, vmax=1, interpolation="nearest")  # fmt: skip
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(True)
                axis.set_xlabel(text)
            row[0].set_ylabel(name)
        if title:
            figure.suptitle(title)
        if path is not None:
            with replacing(pathlib.Path(path)) as temporary:
                figure.savefig(temporary, dpi=120, format="png")
    return figure


def _pixels(images: np.ndarray, value_range: Any) -> np.ndarray:
    """Images on the scale where valid ones span 0 to 255."""
    lower, upper = bounds(value_range)
    return 255 * (images - lower) / (upper - lower)


def _perturbation_label(largest: float) -> str:
    if not largest:
        return "no perturbation"
    return f"perturbation,\n{_rounded(127.5 / largest)} times (grey: 0,\nat most {_rounded(largest)} of 255)"


def _rounded(value: float) -> str:
    """A positive number to two digits after the first, without trailing zeros."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


def _caption(names: Sequence[str], said: int, true: int) -> str:
    if said == true:
        return f"{_name(names, said)}\n(right)"
    return f"{_name(names, said)}\n(is {_name(names, true)})"
