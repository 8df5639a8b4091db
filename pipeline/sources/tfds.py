"""Image classification datasets of TensorFlow Datasets, downloaded and prepared by it where that is not done yet."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pipeline.config import Data
from pipeline.errors import DataError
from pipeline.sources.base import SPLIT_NAMES, Example, Source, SplitName, adopt_splits, choose_classes, listed

_PATIENCE_S = 10


def open_tfds(data: Data) -> Source:
    """Opens the dataset `data.name`, after downloading and preparing it if need be.

    Pictures are streamed as they were stored, encoded, in the order of the dataset's files.

    Raises:
        DataError: there is no such dataset, it cannot be downloaded, or it is not one picture and one class per
            example.
    """
    import tensorflow_datasets as tfds

    assert data.name is not None
    builder = _prepared(data)
    image, label = _keys(builder.info, data.name)
    class_names = [builder.info.features[label].int2str(i) for i in range(builder.info.features[label].num_classes)]
    classes = choose_classes(class_names, data.classes)

    found = [name for name in SPLIT_NAMES if name in builder.info.splits]
    if "train" not in found:
        raise DataError(
            f"The TFDS dataset {data.name} has no train split. Its splits: {listed(list(builder.info.splits))}. "
            "Choose another dataset."
        )
    becomes, notes = adopt_splits(found)
    if ignored := [name for name in builder.info.splits if name not in found]:
        notes += (f"Splits of {data.name} that are not used: {listed(ignored)}.",)

    def examples() -> Iterator[Example]:
        for split in found:
            stream = builder.as_dataset(
                split=split,
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding(
                    {image: True, label: True}, decoders={image: tfds.decode.SkipDecoding()}
                ),
                read_config=tfds.ReadConfig(try_autocache=False),
            )
            for index, item in enumerate(stream.as_numpy_iterator()):
                name = f"{data.name}/{split}/{index}"
                if item[label] < 0:
                    raise DataError(
                        f"{name} has no label: this split of the dataset is for competitions only. Choose another "
                        "dataset."
                    )
                if class_names[item[label]] in classes:
                    yield _example(name, class_names[item[label]], becomes[split], item[image])

    size = None if data.classes else sum(builder.info.splits[name].num_examples for name in found)
    return Source(classes, size, examples, notes)


def _example(name: str, label: str, split: SplitName | None, encoded: bytes) -> Example:
    return Example(name, label, split, lambda: encoded)


def _prepared(data: Data) -> Any:
    """The dataset's builder, its files on disk."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, extractor, util

    where = data.data_dir or "~/tensorflow_datasets"
    try:
        builder = tfds.builder(data.name, data_dir=data.data_dir)
    except tfds.core.DatasetNotFoundError:
        raise DataError(
            f"TensorFlow Datasets has no dataset {data.name}, and none of that name is prepared in {where}. Names are "
            "listed at tensorflow.org/datasets; set data.data_dir if yours is prepared elsewhere."
        ) from None
    except (ValueError, AssertionError) as error:  # a version or configuration that does not exist
        raise DataError(
            f"The TFDS dataset {data.name} cannot be opened. Give a version and configuration that it has. TFDS says: "
            f"{_first_line(error)}"
        ) from error
    try:
        _check_network(builder)
        builder.download_and_prepare()
    except (
        OSError,  # also every failure of the network
        ImportError,  # a dataset with needs of its own
        AssertionError,  # files that must be downloaded by hand
        util.DownloadError,
        download_manager.NonMatchingChecksumError,
        extractor.ExtractError,
    ) as error:
        raise DataError(
            f"The TFDS dataset {data.name} is not prepared in {where} and could not be prepared now. Run again with a "
            f"network connection, or copy a prepared dataset to {builder.data_dir}. {_first_line(error)}"
        ) from error
    return builder


def _check_network(builder: Any) -> None:
    """Raises OSError at once where the first file to download is out of reach: TFDS itself tries for minutes."""
    if builder.is_prepared():
        return
    for url in islice(builder.url_infos or (), 1):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE_S):
                pass
        except urllib.error.HTTPError:
            pass  # It answers.


def _keys(info: Any, name: str) -> tuple[str, str]:
    """The names of the features that hold the picture and the class."""
    import tensorflow_datasets as tfds

    features = dict(info.features)
    images = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = info.supervised_keys
    if supervised and supervised[0] in images and supervised[1] in labels:
        images, labels = [supervised[0]], [supervised[1]]
    if len(images) != 1 or len(labels) != 1 or features[labels[0]].num_classes is None:
        kinds = [f"{key} ({type(feature).__name__})" for key, feature in sorted(features.items())]
        raise DataError(
            f"The TFDS dataset {name} is not for image classification: that takes one Image and one ClassLabel per "
            f"example. Its features: {listed(kinds)}. Choose another."
        )
    return images[0], labels[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
