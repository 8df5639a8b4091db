"""TensorFlow's first import without its greetings."""

import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# What TensorFlow says on every machine, or on every machine without a GPU. It writes these before it reads
# TF_CPP_MIN_LOG_LEVEL, from C++, straight to file descriptor 2.
_GREETING = re.compile(rb"WARNING: All log messages before absl|I\d{4} |E\d{4} .*failed call to cuInit")


def import_tensorflow() -> None:
    """Imports TensorFlow and lets it find its devices; of what it prints, passes on what is not a greeting."""
    # The half million objects that come with it stay. To look for garbage among them takes a quarter of the import, a
    # fifth of a second whenever Keras clears its session, and a second when the process ends.
    gc.disable()
    try:
        with _standard_error_filtered(_GREETING):
            import tensorflow as tf

            tf.config.list_physical_devices()
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def _standard_error_filtered(unwanted: re.Pattern[bytes]) -> Iterator[None]:
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            captured.seek(0)
            for line in captured:
                if not unwanted.match(line):
                    os.write(2, line)
