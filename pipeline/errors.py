"""What can go wrong because of something a user can change.

    GraftError              one paragraph: what is wrong, what is allowed, what was received, what to do
    ├── ConfigError         a mistake in the configuration (exit code 2)
    ├── DataError           the pictures cannot be used as they are
    ├── WeightsError        pretrained weights are missing or do not fit
    ├── TrainingError       a training cannot come to its end with this config
    ├── CacheError          the activation store cannot be opened, or its disk is full
    ├── ExportError         an exported model cannot be written, read, or does not agree with the trained one
    └── TrackingError       MLflow cannot be reached or refuses

Our own invariants are asserted and never caught.
"""

import difflib
import errno
from collections.abc import Iterable

USERS_TO_MEND = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Reasons of an OSError that lie with the machine: a full or read-only disk, missing rights, a path that cannot be."""


class GraftError(Exception):
    """Base of every error that is shown to the user without a traceback."""

    exit_code = 1


class ConfigError(GraftError):
    exit_code = 2


class DataError(GraftError):
    pass


class WeightsError(GraftError):
    pass


class TrainingError(GraftError):
    pass


class CacheError(GraftError):
    pass


class ExportError(GraftError):
    pass


class TrackingError(GraftError):
    pass


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", prefix: str = "") -> str:
    """For an error: "Did you mean vgg19?", where a known word is like this one, capitals aside; else `otherwise`.

    What stands before the word where it is written, as `prefix`, is in the answer alone.
    """
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    return f"Did you mean {prefix}{lower[close[0]]}?" if close else otherwise
