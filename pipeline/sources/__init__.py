"""The table of kinds of data. A new one is a row here, in a file of its own."""

from collections.abc import Callable

from pipeline.config import Data
from pipeline.sources import digits, folder, tfds
from pipeline.sources.base import Source

SOURCES: dict[str, Callable[[Data], Source]] = {
    "folder": folder.open_folder,
    "tfds": tfds.open_tfds,
    "digits": digits.open_digits,
}


def open_source(data: Data) -> Source:
    """The pictures a config asks for. Raises DataError where they cannot be had."""
    return SOURCES[data.source](data)
