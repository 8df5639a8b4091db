"""Where a run's random numbers come from."""

import keras
import tensorflow as tf


def reproducible(seed: int) -> None:
    """Makes everything after this call a function of `seed`: initial values, order, augmentation, and rounding."""
    keras.utils.clear_session()  # Keras numbers layers from 1 again.
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
