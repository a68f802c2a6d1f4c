"""Scikit-learn's 1,797 images of handwritten digits, 8 by 8 pixels."""

from __future__ import annotations

import numpy as np

from tf_largebatch.data.memory import Arrays

TEST_EXAMPLES = 360


def load_digits() -> tuple[Arrays, Arrays]:
    """Returns ((images, labels), (images, labels)) of train and test: uint8 from 0 to 16, int64.

    The split is fixed: 1,437 images to train and 360 to test, with equal shares of the classes.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI 1998, as shipped with
    scikit-learn.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    images = digits.images.astype(np.uint8)[..., None]
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=TEST_EXAMPLES, stratify=digits.target, random_state=0
    )
    return (x_train, y_train), (x_test, y_test)
