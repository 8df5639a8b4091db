"""A backbone with its weights: from Keras's ImageNet files, a file, an earlier run, or none."""

import hashlib
import inspect
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from pipeline import find_run
from pipeline.artifacts import BackboneIdentity
from pipeline.backbones import BACKBONES
from pipeline.backbones.contracts import CONTRACTS
from pipeline.config import BackboneConfig
from pipeline.errors import ConfigError, WeightsError, did_you_mean

if TYPE_CHECKING:
    import keras

# What Keras, h5py and zipfile raise for a weights file that is damaged or made for another network.
_UNUSABLE = (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)


def load(config: BackboneConfig, image_size: int, output_dir: Path) -> "keras.Model":
    """Builds the network and gives it the weights that the config asks for.

    Args:
        config: the network, its options and its weights.
        image_size: side of the square input, in pixels.
        output_dir: where earlier runs lie, for `weights: run:...`.

    Returns:
        A functional model from normalised pixels, float32 [N, image_size, image_size, C], to feature maps or features.

    Raises:
        ConfigError: the builder refuses an option's value.
        WeightsError: the weights are missing, damaged, or do not fit the network.
    """
    if config.weights == "imagenet":
        return _imagenet(config, image_size)
    if config.weights == "none":
        return _build(config, image_size)
    if config.weights.startswith("run:"):
        file = _file_of_run(config, output_dir)
    else:
        file = Path(config.weights)
        assert file.name.endswith((".weights.h5", ".keras")), "BackboneConfig allows no other form"
        if not file.is_file():
            raise WeightsError(f"There is no weights file {file}. Check backbone.weights, or use imagenet or none.")
    backbone = _build(config, image_size)
    fill(backbone, file, f"{config.name} with options {config.options}")
    return backbone


def fill(network: "keras.Model", file: Path, what: str) -> None:
    """Gives a network, which errors call `what`, the weights in a file. Raises WeightsError."""
    try:
        with warnings.catch_warnings():
            # Keras warns of layers it could not load on its way to the error that says so.
            warnings.filterwarnings("ignore", message="Skipping nested container")
            network.load_weights(file)
    except _UNUSABLE as error:
        raise WeightsError(
            f"The weights in {file} do not fit {what}, or the file is damaged. "
            f"Use the name and options that the file was written with. Keras says: {_first_sentences(error)}"
        ) from error


def outline(name: str, image_size: int, **options: Any) -> "keras.Model":
    """The network without memory for its weights: to read its layers, shapes and counts in seconds at most.

    Raises:
        ConfigError: the builder refuses an option's value.
    """
    with _without_memory():
        return _build(BackboneConfig(name=name, weights="none", options=options), image_size)


def published(name: str) -> "keras.Model":
    """As `outline`, at its own size and with its classification layer: for ImageNet's 1000 classes, LeNet-5's 10."""
    row = BACKBONES[name]
    with _without_memory():
        return row.build(input_shape=_input_shape(name, row.default_size), weights=None, include_top=True)


@contextmanager
def _without_memory() -> Iterator[None]:
    import keras
    from keras.src.backend.common import global_state

    # Keras keeps a list of variables that await their values, and would fill it in at the next occasion.
    pending = list(global_state.get_global_attribute("uninitialized_variables", []))
    with keras.StatelessScope(initialize_variables=False):
        yield
    global_state.set_global_attribute("uninitialized_variables", pending)


def digest(model: "keras.Model") -> str:
    """SHA-256, in hex, over the names, data types, shapes and values of all weights in order.

    A layer's own name is left out: Keras numbers unnamed layers by what the process has built before.
    """
    sha = hashlib.sha256()
    for weight in model.weights:
        value = weight.numpy()
        sha.update(f"{weight.name} {value.dtype} {value.shape}\n".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def started_from(config: BackboneConfig, output_dir: Path) -> Path | None:
    """The folder of the run that `weights: run:...` stands for now; None for other weights. Raises WeightsError."""
    return _file_of_run(config, output_dir).parent.resolve() if config.weights.startswith("run:") else None


def _build(config: BackboneConfig, image_size: int, weights: str | None = None) -> "keras.Model":
    shape = _input_shape(config.name, image_size)
    try:
        with warnings.catch_warnings():
            # Said of sizes that Keras has no weights of their own for. Convolutions fit a picture of any size.
            warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
            return BACKBONES[config.name].build(input_shape=shape, weights=weights, **config.options)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"backbone.options: {config.name} at {image_size} pixels cannot be built with {config.options} and weights "
            f"{config.weights}. Keras says: {_first_sentences(error)}"
        ) from error


def _input_shape(name: str, image_size: int) -> tuple[int, int, int]:
    return image_size, image_size, CONTRACTS[BACKBONES[name].contract].channels


# ------------------------------------------------------------------------------------------------------------ ImageNet


@dataclass
class _Fetched:
    """The file that Keras asked for, once there is one."""

    file: Path | None = None
    origin: str = ""


def _imagenet(config: BackboneConfig, image_size: int) -> "keras.Model":
    fetched = _Fetched()
    try:
        with _fetching(config.name, fetched):
            return _build(config, image_size, "imagenet")
    except (ConfigError, *_UNUSABLE) as error:
        if fetched.file is None:
            raise
        cause = error.__cause__ or error
        raise WeightsError(
            f"The ImageNet weights of {config.name} in {fetched.file} cannot be used: the file is damaged or of "
            f"another network. Delete it and run again, or replace it by {fetched.origin}. "
            f"Keras says: {_first_sentences(cause)}"
        ) from error


@contextmanager
def _fetching(name: str, fetched: _Fetched) -> Iterator[None]:
    """While it is open, Keras's downloads report to standard error and fail with words that help."""
    import keras

    module: Any = inspect.getmodule(keras.utils.get_file)
    keras_get_file = module.get_file

    def get_file(fname: str, origin: str, cache_subdir: str, file_hash: str | None = None) -> str:
        home = Path(module.config.keras_home()).expanduser()
        file = home / cache_subdir / fname
        if file.is_file() and not os.access(home, os.W_OK):
            path = str(file)  # Keras looks elsewhere where it may not write, but this file needs no writing.
        else:
            try:
                with redirect_stdout(sys.stderr):
                    path = keras_get_file(fname, origin, cache_subdir=cache_subdir, file_hash=file_hash)
            # Keras raises a bare Exception where the network fails; nothing but the download happens in here.
            except Exception as error:
                algorithm = "MD5" if file_hash and len(file_hash) == 32 else "SHA-256"
                raise WeightsError(
                    f"The ImageNet weights of {name} are missing here, or damaged, and cannot be downloaded "
                    f"({_first_sentences(error)}). Put the file {fname} into the folder {file.parent}, from {origin}"
                    + (f" ({algorithm} {file_hash})" if file_hash else "")
                    + ". KERAS_HOME moves the folder. Or use weights: none, a file, or run:NAME."
                ) from error
        fetched.file, fetched.origin = Path(path), origin
        return path

    with mock.patch.object(module, "get_file", get_file):
        yield


# -------------------------------------------------------------------------------------------------------- earlier runs


def _file_of_run(config: BackboneConfig, output_dir: Path) -> Path:
    """The weights that an earlier run left, checked to be of the same network."""
    reference = config.weights.removeprefix("run:")
    runs = find_run.finished(output_dir)
    folder = find_run.newest(reference, runs)
    if folder is None:
        known = (run.name for run in runs.values())
        allowed = (
            f"Names of finished runs there: {find_run.names(runs.values())}. Give a finished run, or another "
            "backbone.weights."
        )
        raise WeightsError(
            f"backbone.weights: no finished run in {output_dir} has this MLflow run id, folder name or name. "
            f"Received: {config.weights}. {did_you_mean(reference, known, allowed)}"
        )
    theirs, ours = runs[folder].backbone, BackboneIdentity(name=config.name, options=config.options)
    if theirs != ours:
        raise WeightsError(
            f"backbone.weights: {config.weights} is the run in {folder}, whose backbone is {theirs.name} with options "
            f"{theirs.options}. This config's must be the same. Received: {ours.name} with options {ours.options}. "
            "Change backbone.name and backbone.options, or start from another run."
        )
    file = folder / "backbone.weights.h5"
    if not file.is_file():
        raise WeightsError(
            f"backbone.weights: {config.weights} is the run in {folder}, which has lost its {file.name}. Put it back, "
            "or start from another run."
        )
    return file


def _first_sentences(error: BaseException) -> str:
    """Keras's message on one line, without the list of every object that it may end with."""
    return " ".join(str(error).split("List of objects")[0].split()).rstrip(".")
