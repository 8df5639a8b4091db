"""Each kind of data, as the examples it gives and the mistakes it explains."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Data
from pipeline.errors import DataError
from pipeline.pixels import PixelSpec, decode
from pipeline.sources import SOURCES, open_source
from pipeline.sources.base import Source


def plant(root: Path, *paths: str) -> Path:
    """Writes a small file of its own content at each path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def folder(path: Path, **more: Any) -> Source:
    return open_source(Data(source="folder", path=str(path), **more))


def found(source: Source) -> list[tuple[str, str, str | None]]:
    return [(example.name, example.label, example.split) for example in source.examples()]


def test_every_source_of_the_config_has_a_row() -> None:
    assert set(SOURCES) == set(Data.model_fields["source"].annotation.__args__)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- class folders


def test_class_folders_with_folders_in_them(tmp_path: Path) -> None:
    plant(tmp_path, "bees/b.jpg", "bees/2019/may/a b.jpg", "ants/c.png", "ants/no extension")
    source = folder(tmp_path)
    assert source.classes == ("ants", "bees")
    assert source.size == 4
    assert source.notes == ()
    assert found(source) == [
        ("ants/c.png", "ants", None),
        ("ants/no extension", "ants", None),
        ("bees/b.jpg", "bees", None),
        ("bees/2019/may/a b.jpg", "bees", None),
    ]
    assert [example.read() for example in source.examples()] == [name.encode() for name, _, _ in found(source)]


def test_the_same_examples_in_the_same_order_every_time(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{label}/{i}.jpg" for label in "ab" for i in range(20)))
    assert found(folder(tmp_path)) == found(folder(tmp_path))
    source = folder(tmp_path)
    first = found(source)
    plant(tmp_path, "a/00.jpg")
    assert found(source) == first


def test_what_operating_systems_leave_behind_is_ignored(tmp_path: Path) -> None:
    plant(tmp_path, "ants/a.jpg", "bees/b.jpg")
    plant(tmp_path, ".DS_Store", "ants/.DS_Store", "ants/Thumbs.db", "bees/desktop.ini", ".git/x", "bees/.cache/x")
    source = folder(tmp_path)
    assert [name for name, _, _ in found(source)] == ["ants/a.jpg", "bees/b.jpg"]
    assert source.notes == ()


def test_files_beside_the_class_folders_are_told(tmp_path: Path) -> None:
    plant(tmp_path, "ants/a.jpg", "bees/b.jpg", "README.txt", "z.jpg")
    assert folder(tmp_path).notes == (
        f"2 files of {tmp_path} lie in no class folder and are left out, e.g. README.txt.",
    )


def test_links_are_followed_once(tmp_path: Path) -> None:
    plant(tmp_path / "data", "ants/a.jpg", "bees/b.jpg")
    plant(tmp_path / "elsewhere", "c.jpg")
    (tmp_path / "data/ants/loop").symlink_to(tmp_path / "data/ants")
    (tmp_path / "data/bees/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data/bees")
    (tmp_path / "data/bees/nowhere.jpg").symlink_to(tmp_path / "missing.jpg")
    (tmp_path / "data/bees/self.jpg").symlink_to(tmp_path / "data/bees/self.jpg")
    source = folder(tmp_path / "data")
    names = [name for name, _, _ in found(source)]
    assert names == ["ants/a.jpg", "bees/b.jpg", "bees/nowhere.jpg", "bees/self.jpg", "bees/up/c.jpg"]
    with pytest.raises(FileNotFoundError):
        list(source.examples())[2].read()


def test_a_pipe_is_not_a_picture(tmp_path: Path) -> None:
    plant(tmp_path, "ants/a.jpg", "bees/b.jpg")
    os.mkfifo(tmp_path / "ants/pipe.jpg")
    assert len(found(folder(tmp_path))) == 2


def test_a_file_name_that_is_not_utf_8(tmp_path: Path) -> None:
    plant(tmp_path, "ants/a.jpg", "bees/b.jpg")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/ants/caf\xe9.jpg")).write_bytes(b"picture")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    example = list(folder(tmp_path).examples())[1]
    assert example.name == r"ants/caf\xe9.jpg"
    assert example.read() == b"picture"


def test_chosen_classes_in_the_order_asked_for(tmp_path: Path) -> None:
    plant(tmp_path, "ants/a.jpg", "bees/b.jpg", "cats/c.jpg")
    (tmp_path / "empty").mkdir()
    source = folder(tmp_path, classes=["cats", "ants"])
    assert source.classes == ("cats", "ants")
    assert source.size == 2
    assert [label for _, label, _ in found(source)] == ["ants", "cats"]
    with pytest.raises(DataError, match=r"data\.classes names dogs, .* are: ants, bees, cats, empty\."):
        folder(tmp_path, classes=["ants", "dogs"])


@pytest.mark.parametrize(
    ("paths", "folders", "words"),
    [
        ((), (), "has no class folders"),
        (("a.jpg",), (), "has no class folders"),
        (("ants/a.jpg",), (), "at least two classes, and the data has only ants"),
        (("ants/a.jpg", "bees/b.jpg"), ("cats",), r"class folder .*cats is empty"),
        (("ants/a.jpg", "bees/b.jpg"), ("cats/kittens",), r"class folder .*cats is empty"),
        (("ants/a.jpg", "bees/.hidden"), (), r"class folder .*bees is empty"),
    ],
)
def test_folders_that_cannot_be_used(
    tmp_path: Path, paths: tuple[str, ...], folders: tuple[str, ...], words: str
) -> None:
    plant(tmp_path, *paths)
    for path in folders:
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        folder(tmp_path)


def test_a_path_with_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing at data\.path .*missing"):
        folder(tmp_path / "missing")


# ------------------------------------------------------------------------------------------------------- split folders


def split_paths(*splits: str) -> list[str]:
    return [f"{split}/{label}/{split}.jpg" for split in splits for label in ("ants", "bees")]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_with_train_and_val_alone_val_is_the_test_split(tmp_path: Path, val: str) -> None:
    source = folder(plant(tmp_path, *split_paths("train", val)))
    assert {(name.split("/")[0], split) for name, _, split in found(source)} == {("train", "train"), (val, "test")}
    assert source.notes == (
        "The data has train and validation splits but no test split: its validation split is used as the test split, "
        "and validation is taken from train.",
    )


def test_train_and_test(tmp_path: Path) -> None:
    source = folder(plant(tmp_path, *split_paths("train", "test")))
    assert Counter(split for _, _, split in found(source)) == {"train": 2, "test": 2}
    assert "validation is taken from train" in source.notes[0]


def test_all_three_splits_as_given(tmp_path: Path) -> None:
    source = folder(plant(tmp_path, *split_paths("train", "val", "test")))
    assert Counter(split for _, _, split in found(source)) == {"train": 2, "validation": 2, "test": 2}
    assert source.notes == ()


def test_train_alone_is_split_by_content(tmp_path: Path) -> None:
    source = folder(plant(tmp_path, *split_paths("train")))
    assert [split for _, _, split in found(source)] == [None, None]
    assert "validation and test are taken from it" in source.notes[0]


@pytest.mark.parametrize("name", ["ants\nwasps", "ants\n", "ants\u2028wasps"])
def test_a_class_name_of_several_lines_is_refused(tmp_path: Path, name: str) -> None:
    plant(tmp_path, f"{name}/a.jpg", "bees/b.jpg", "cats/c.jpg")
    with pytest.raises(DataError, match="must not hold a line break") as error:
        folder(tmp_path)
    assert repr(name) in str(error.value)
    assert folder(tmp_path, classes=["bees", "cats"]).classes == ("bees", "cats")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = folder(plant(tmp_path, "train/a.jpg", "tram/b.jpg"))
    assert source.classes == ("train", "tram")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([*split_paths("val", "test")], "no train split"),
        (
            [*split_paths("train", "test"), "unlabelled/a.jpg"],
            r"split folders \(test, train\) and others \(unlabelled\)",
        ),
        ([*split_paths("train", "val", "valid")], "two folders for the validation split: val and valid"),
        ([*split_paths("train", "test"), "test/cats/c.jpg"], "No picture of cats is in the train split"),
        (["train/a.jpg", "test/b.jpg"], r"test has no class folders"),
    ],
)
def test_split_folders_that_cannot_be_used(tmp_path: Path, paths: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        folder(plant(tmp_path, *paths))


def test_files_in_a_split_folder_that_are_in_no_class_are_told(tmp_path: Path) -> None:
    source = folder(plant(tmp_path, *split_paths("train", "val", "test"), "train/labels.csv", "notes.txt"))
    assert [note.rpartition(" ")[2] for note in source.notes] == ["notes.txt.", "labels.csv."]


# ----------------------------------------------------------------------------------------------------------------- CSV


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_with_paths_relative_to_it(tmp_path: Path) -> None:
    plant(tmp_path, "pictures/a, b.jpg", "pictures/c.jpg")
    elsewhere = plant(tmp_path / "elsewhere", "d.jpg") / "d.jpg"
    table = write(
        tmp_path / "table.csv",
        f'path,id,label\n"pictures/a, b.jpg",1,ants\r\n\r\npictures/c.jpg,2,bees\n{elsewhere},3,bees\n',
        encoding="utf-8-sig",
    )
    source = folder(table)
    assert source.classes == ("ants", "bees")
    assert found(source) == [
        ("pictures/a, b.jpg", "ants", None),
        ("pictures/c.jpg", "bees", None),
        (str(elsewhere), "bees", None),
    ]
    assert [example.read() for example in source.examples()] == [b"pictures/a, b.jpg", b"pictures/c.jpg", b"d.jpg"]


def test_a_csv_with_splits(tmp_path: Path) -> None:
    rows = [(f"{i}.jpg", "ab"[i % 2], ["train", "Val", "valid", "validation"][i // 2]) for i in range(8)]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    source = folder(tmp_path / "table.csv")
    assert [split for _, _, split in found(source)] == ["train"] * 2 + ["test"] * 6
    assert "validation split is used as the test split" in source.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing: label, path. Received: an empty file"),
        ("path,class\na.jpg,ants\n", "missing: label. Received: path, class"),
        ("path;label\na.jpg;ants\n", "missing: label, path. Received: path;label"),
        ("path,label\n", "lists no pictures"),
        ("path,label\na.jpg,ants\nb.jpg,\n", "line 3: the column label is empty"),
        ("path,label\na.jpg,ants\nb.jpg\n", "line 3: the column label is empty"),
        ("path,label\n,ants\n", "line 2: the column path is empty"),
        ("path,label,split\na.jpg,ants,train\nb.jpg,bees,dev\n", "line 3: .*train, val.* Received: 'dev'"),
        ("path,label,split\na.jpg,ants,train\nb.jpg,bees,\n", "line 3: .* Received: ''"),
        ("path,label\na.jpg,ants\n", "at least two classes, and the data has only ants"),
        ("path,label,split\na.jpg,ants,test\nb.jpg,bees,test\n", "no train split"),
        ("path,label,split\na.jpg,ants,train\nb.jpg,bees,test\n", "No picture of bees is in the train split"),
    ],
)
def test_csv_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        folder(write(tmp_path / "table.csv", text))


def test_a_picture_is_not_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match=r"a\.jpg is not a CSV file in UTF-8"):
        folder(tmp_path / "a.jpg")


# -------------------------------------------------------------------------------------------------------------- digits


def test_digits() -> None:
    source = open_source(Data(source="digits"))
    assert source.classes == tuple("0123456789")
    examples = list(source.examples())
    assert len(examples) == source.size == 1797
    assert len({example.name for example in examples}) == 1797

    from sklearn.datasets import load_digits

    picture = decode(examples[17].read(), PixelSpec(8, 8, crop=1.0))
    expected = load_digits().images[17] * 255 / 16
    assert np.abs(picture - expected[..., None]).max() <= 0.5
    assert examples[17].label == str(load_digits().target[17])


def test_some_digits() -> None:
    source = open_source(Data(source="digits", classes=["7", "5"]))
    assert source.classes == ("7", "5")
    assert {example.label for example in source.examples()} == {"7", "5"}
    assert source.size == len(list(source.examples()))
    with pytest.raises(DataError, match=r"data\.classes names ten"):
        open_source(Data(source="digits", classes=["1", "ten"]))


# ---------------------------------------------------------------------------------------------------------------- TFDS


@pytest.fixture
def tfds() -> Any:
    import tensorflow_datasets

    return tensorflow_datasets


@pytest.fixture
def prepare(tfds: Any, tmp_path: Path) -> Callable[..., Data]:
    """Prepares a dataset of a builder of our own, as a user would, and gives the config that opens it."""

    def prepare(splits: dict[str, int], label: Any = None, keys: Any = ("image", "label"), **features: Any) -> Data:
        label = label or tfds.features.ClassLabel(names=["tulip", "daisy", "rose"])

        with tfds.core.registered.skip_registration():

            class GraftFlowers(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
                VERSION = tfds.core.Version("1.0.0")

                def _info(self) -> Any:
                    image = tfds.features.Image(shape=(None, None, 3))
                    both = {"image": image, "label": label, **features}
                    return tfds.core.DatasetInfo(
                        builder=self,
                        features=tfds.features.FeaturesDict({k: v for k, v in both.items() if v is not None}),
                        supervised_keys=keys,
                    )

                def _split_generators(self, dl_manager: Any) -> Any:
                    return {split: self._generate_examples(split, count) for split, count in splits.items()}

                def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, Any]]:
                    for i in range(count):
                        picture = np.full((10 + i, 12, 3), 10 * i + len(split), np.uint8)
                        values = {"image": picture, "label": i % 3, **dict.fromkeys(features, 1)}
                        yield i, {key: value for key, value in values.items() if key in self.info.features}

        GraftFlowers(data_dir=str(tmp_path)).download_and_prepare()
        return Data(source="tfds", name="graft_flowers", data_dir=str(tmp_path))

    return prepare


@pytest.mark.slow
def test_a_dataset_prepared_by_a_builder_of_ones_own(prepare: Callable[..., Data]) -> None:
    source = open_source(prepare({"train": 9, "test": 3, "unlabelled": 2}))
    assert source.classes == ("daisy", "rose", "tulip")
    assert source.size == 12
    assert source.notes == (
        "The data has train and test splits but no validation split: validation is taken from train.",
        "Splits of graft_flowers that are not used: unlabelled.",
    )
    examples = list(source.examples())
    assert [example.name for example in examples] == [
        *(f"graft_flowers/train/{i}" for i in range(9)),
        *(f"graft_flowers/test/{i}" for i in range(3)),
    ]
    assert Counter((example.split, example.label) for example in examples) == {
        ("train", "daisy"): 3, ("train", "rose"): 3, ("train", "tulip"): 3,
        ("test", "daisy"): 1, ("test", "rose"): 1, ("test", "tulip"): 1,
    }  # fmt: skip
    assert [(e.name, e.label, e.read()) for e in source.examples()] == [(e.name, e.label, e.read()) for e in examples]
    for example in examples:  # the picture says which it is, and that fixes its label
        grey = int(decode(example.read(), PixelSpec(8, 8))[0, 0, 0])
        number = (grey - len(example.split or "")) // 10
        assert example.label == ["tulip", "daisy", "rose"][number % 3]


@pytest.mark.slow
def test_classes_of_a_dataset_can_be_chosen(prepare: Callable[..., Data]) -> None:
    data = prepare({"train": 9, "validation": 3})
    source = open_source(data.model_copy(update={"classes": ["tulip", "daisy"]}))
    assert source.classes == ("tulip", "daisy")
    assert Counter((e.label, e.split) for e in source.examples()) == {
        ("tulip", "train"): 3, ("daisy", "train"): 3, ("tulip", "test"): 1, ("daisy", "test"): 1,
    }  # fmt: skip


@pytest.mark.slow
def test_a_dataset_with_train_alone_and_classes_without_names(tfds: Any, prepare: Callable[..., Data]) -> None:
    coarse = tfds.features.ClassLabel(num_classes=2)
    source = open_source(prepare({"train": 6}, tfds.features.ClassLabel(num_classes=3), coarse_label=coarse))
    assert source.classes == ("0", "1", "2")
    assert [example.split for example in source.examples()] == [None] * 6


@pytest.mark.slow
def test_datasets_that_are_not_for_image_classification(tfds: Any, prepare: Callable[..., Data]) -> None:
    with pytest.raises(DataError, match=r"not for image classification: .* image \(Image\), label \(Scalar\)"):
        open_source(prepare({"train": 3}, tfds.features.Scalar(np.int64), keys=None))


@pytest.mark.slow
def test_two_class_labels_and_nothing_to_choose_by(tfds: Any, prepare: Callable[..., Data]) -> None:
    with pytest.raises(DataError, match="one Image and one ClassLabel"):
        open_source(prepare({"train": 3}, keys=None, coarse_label=tfds.features.ClassLabel(num_classes=2)))


@pytest.mark.slow
def test_a_dataset_without_a_train_split(prepare: Callable[..., Data]) -> None:
    with pytest.raises(DataError, match=r"no train split\. Its splits: test"):
        open_source(prepare({"test": 3}))


@pytest.mark.slow
def test_datasets_that_do_not_exist(tfds: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset tf_flower, .* prepared in .*data\.data_dir") as caught:
        open_source(Data(source="tfds", name="tf_flower", data_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"mnist:9\.9\.9 cannot be opened.*only: 3\.0\.1"):
        open_source(Data(source="tfds", name="mnist:9.9.9", data_dir=str(tmp_path)))


@pytest.mark.slow
def test_a_dataset_that_cannot_be_downloaded(tfds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS would try for minutes. An address of this machine at which nothing listens refuses at once."""
    nowhere = property(lambda _: {"http://127.0.0.1:9/mnist.gz": None})
    monkeypatch.setattr(tfds.core.DatasetBuilder, "url_infos", nowhere)
    with pytest.raises(DataError, match=rf"not prepared in {tmp_path} .*copy .*mnist.*Connection refused"):
        open_source(Data(source="tfds", name="mnist", data_dir=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "tf_flowers", "cats_vs_dogs"])
def test_the_catalogue_with_made_up_data(tfds: Any, tmp_path: Path, name: str) -> None:
    """TFDS's own mock of its datasets: the real features, invented pictures."""
    builder = tfds.builder(name, data_dir=tmp_path)
    split = tfds.core.SplitInfo(name="train", shard_lengths=[1], num_bytes=0)
    builder.info.set_splits(tfds.core.splits.SplitDict([split]))
    Path(builder.data_dir).mkdir(parents=True)
    builder.info.write_to_directory(builder.data_dir)
    with tfds.testing.mock_data(num_examples=6, data_dir=str(tmp_path)):
        source = open_source(Data(source="tfds", name=name, data_dir=str(tmp_path)))
        examples = list(source.examples())
        assert [example.name for example in examples] == [f"{name}/train/{i}" for i in range(6)]
        assert {example.label for example in examples} <= set(source.classes)
        assert all(decode(example.read(), PixelSpec(16, 16)).shape == (16, 16, 3) for example in examples)
        assert [example.read() for example in source.examples()] == [example.read() for example in examples]
