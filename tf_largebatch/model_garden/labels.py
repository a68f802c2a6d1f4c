"""Whether the labels of the data fit the number of classes, before training and at every batch."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from google.protobuf import message

from tf_largebatch import check
from tf_largebatch.model_garden.refusals import ConfigurationError, one_line, require

CLASSES = "task.model.num_classes"
# Records read before training; every later label is checked when its batch is made.
RECORDS_READ = 2000


def check_prepared_labels(builder: Any, classes: int) -> None:
    """Raises if a prepared data set has more classes than the model.

    Args:
        builder: The data set's builder of tensorflow_datasets.
        classes: The model's number of classes.

    Raises:
        ConfigurationError: If it has.
    """
    label = builder.info.features.get("label") if hasattr(builder.info.features, "get") else None
    known = getattr(label, "num_classes", None)
    if known is not None:
        require(classes >= known, CLASSES, classes, f"at least {known}, the number of classes of {builder.name}")


def check_recorded_labels(field: str, file_type: str, key: str, file: str, classes: int) -> None:
    """Raises if the first records of a TFRecord file lack a label or have one that the model does not know.

    Args:
        field: The field of the data, such as `task.train_data`.
        file_type: "tfrecord" or "tfrecord_compressed".
        key: The labels' feature.
        file: The first file.
        classes: The model's number of classes.

    Raises:
        ConfigurationError: If there is such a record, or if the file cannot be read.
    """
    records = tf.data.TFRecordDataset(file, "GZIP" if file_type == "tfrecord_compressed" else "")
    count = 0
    try:
        for record in records.take(RECORDS_READ).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            rule = f"a feature of the records, which have {', '.join(sorted(features)) or 'none'}"
            require(key in features, "task.train_data.label_field_key", key, rule)
            for label in features[key].int64_list.value:
                require(0 <= label < classes, CLASSES, classes, _rule(label, classes), f"{file} has the label {label}")
            count += 1
    except (tf.errors.OpError, message.DecodeError) as error:
        rule = f"a pattern of {file_type} files of tf.train.Example; {file} cannot be read as one"
        raise ConfigurationError(check.message(f"{field}.input_path", rule, file, one_line(error))) from error
    require(count > 0, f"{field}.input_path", file, "a pattern of files that hold records")


def with_checked_labels(dataset: tf.data.Dataset, classes: int) -> tf.data.Dataset:
    """Batches `(images, labels)` whose integer labels are all from 0 to `classes - 1`.

    The data set raises `InvalidArgumentError` at the first batch with another label. It does so on the CPU, whatever
    device trains: a one-hot vector would be all zeros there, and the example would train nothing, silently.

    Args:
        dataset: Batches with integer labels of shape [B]; others are left alone.
        classes: The model's number of classes.
    """
    _, labels = dataset.element_spec
    if not (isinstance(labels, tf.TensorSpec) and labels.dtype.is_integer and labels.shape.rank == 1):
        return dataset
    sentence = check.message(CLASSES, "above every label of the data", classes, "a batch has other labels")

    def checked(images: Any, labels: tf.Tensor) -> tuple[Any, tf.Tensor]:
        fits = tf.reduce_all((labels >= 0) & (labels < tf.cast(classes, labels.dtype)))
        with tf.control_dependencies([tf.debugging.Assert(fits, [sentence])]):
            return images, tf.identity(labels)

    return dataset.map(checked)


def _rule(label: int, classes: int) -> str:
    return f"at least {label + 1}" if label >= classes else "used with labels of 0 or more"
