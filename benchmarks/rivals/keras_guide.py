"""The Keras guide "Transfer learning & fine-tuning" (https://keras.io/guides/transfer_learning/), on two folders.

    KERAS_HOME=../shared/keras python -m benchmarks.rivals.keras_guide --train DIR --validation DIR

As the guide has it: pictures read by `keras.utils.image_dataset_from_directory`, which it recommends for one's own,
then `.prefetch(AUTOTUNE).cache()`, so that decoding, shuffling into batches and random augmentation, done in `map`
before the cache, happen in the first epoch alone (--no-cache leaves the cache out, as TensorFlow's own tutorial on
transfer learning does, and as data larger than the memory asks for); scaling to [-1, 1] inside the model; the base
network called with `training=False`; dropout of 0.2 and one logit; `Adam()` for the head, `Adam(1e-5)` for everything.
Batch normalisation stays frozen in fine-tuning, one of the two ways the guide gives to keep its statistics. The other,
`training=False`, no longer does alone: `fit` overrides it (Keras issue 20285), the statistics move, and accuracy falls.

Four things differ. The network is MobileNet 0.25 at 224 pixels instead of Xception at 150. The default batch is
`image_dataset_from_directory`'s 32; the guide's, on 9,000 pictures, is 64. Augmentation is an option. The accuracy's
threshold is 0, the logit of one half: the guide's `BinaryAccuracy()` holds logits against 0.5.

For two classes. What is counted is said in `benchmarks.rivals.Result`. Standard output ends with one line of JSON.
"""

import platform
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from benchmarks.rivals import Phase, Result, arguments

SIZE = (224, 224)


def build() -> tuple[keras.Model, keras.Model]:
    """The whole model, uint8-valued pixels (B, 224, 224, 3) to logits (B, 1), and the base network inside it."""
    base_model = keras.applications.MobileNet(weights="imagenet", alpha=0.25, input_shape=(*SIZE, 3), include_top=False)
    base_model.trainable = False
    inputs = keras.Input(shape=(*SIZE, 3))
    x = keras.layers.Rescaling(scale=1 / 127.5, offset=-1)(inputs)
    x = base_model(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(1)(x)
    return keras.Model(inputs, outputs), base_model


def read(folder: Path, batch_size: int, seed: int, augment: bool, cache: bool) -> tuple[tf.data.Dataset, int]:
    """Batches of pixels (B, 224, 224, 3) in [0, 255] and labels (B, 1), 0 or 1; and the number of pictures."""
    dataset = keras.utils.image_dataset_from_directory(
        folder, label_mode="binary", batch_size=batch_size, image_size=SIZE, seed=seed, verbose=False
    )
    images = len(dataset.file_paths)
    if augment:
        augmentation = keras.Sequential([keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)])
        dataset = dataset.map(lambda x, y: (augmentation(x, training=True), y))
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    return dataset.cache() if cache else dataset, images


class EpochSeconds(keras.callbacks.Callback):
    """Wall time of each epoch, validation included."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def fit(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    train: tf.data.Dataset,
    validation: tf.data.Dataset,
    epochs: int,
) -> Phase:
    """Compiles and trains, with validation after each epoch."""
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )
    epoch_seconds = EpochSeconds()
    history = model.fit(train, epochs=epochs, validation_data=validation, callbacks=[epoch_seconds], verbose=0)
    return Phase(epoch_seconds.seconds, history.history.get("val_binary_accuracy", []))


def unfreeze(base_model: keras.Model, what: str) -> None:
    """Unfreezes "all" of the base network, as the guide does, or its "last-two-blocks"; but no batch normalisation."""
    base_model.trainable = True
    names = [layer.name for layer in base_model.layers]
    first = names.index("conv_dw_12") if what == "last-two-blocks" else 0
    for place, layer in enumerate(base_model.layers):
        if place < first or isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def main() -> None:
    options = arguments(__doc__)
    keras.utils.set_random_seed(options.seed)
    building = time.perf_counter()
    model, base_model = build()

    freezing = time.perf_counter()
    cache = not options.no_cache
    train, images = read(options.train, options.batch_size, options.seed, options.augment, cache)
    validation, _ = read(options.validation, options.batch_size, options.seed, augment=False, cache=cache)
    frozen = Phase([], [])
    if options.frozen_epochs:
        frozen = fit(model, keras.optimizers.Adam(), train, validation, options.frozen_epochs)

    tuning = time.perf_counter()
    tuned = Phase([], [])
    if options.fine_tune_epochs:
        unfreeze(base_model, options.unfreeze)
        tuned = fit(model, keras.optimizers.Adam(1e-5), train, validation, options.fine_tune_epochs)
    end = time.perf_counter()

    Result.of(
        build=freezing - building,
        frozen=(tuning - freezing, frozen),
        tuned=(end - tuning, tuned),
        images=images,
        python=platform.python_version(),
        tensorflow=tf.__version__,
        keras=keras.__version__,
    ).print()


if __name__ == "__main__":
    main()
