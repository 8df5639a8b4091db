"""From a source to splits of pixels, on folders that the tests plant and on real photographs."""

import csv
import hashlib
import io
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import Data
from pipeline.console import Advance, Console
from pipeline.decoded import pixel_settings
from pipeline.errors import DataError
from pipeline.ingest import (
    Known,
    channel_mean,
    ingest,
    mean_image,
    mean_to_subtract,
    split_of,
    write_splits,
)
from pipeline.pixels import PixelSpec, decode
from pipeline.sources import open_source
from pipeline.sources.base import Example, Source
from pipeline.splits import Split, Splits
from tests.folders import class_folders, picture, plant

SPEC = PixelSpec(16, 16, crop=1.0)
HYMENOPTERA = Path(__file__).parent.parent.parent / "shared/data/hymenoptera"


class Listening(Console):
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []
        self.steps = 0
        self.total: int | None = None
        self.note = ""

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str = "images", keep: bool = True) -> Iterator[Advance]:
        self.total = total

        def advance(steps: int = 1, note: str = "", label: str = "") -> None:
            self.steps += steps
            self.note = note

        yield advance


class Remembered:
    """Known pictures in memory, and what was added each time."""

    def __init__(self, *known: bytes) -> None:
        self.known = {(pixel_settings(SPEC), hashlib.sha256(content).digest()) for content in known}
        self.added: list[list[bytes]] = []

    def decodable(self, pixels: str, picture: bytes) -> bool:
        return (pixels, picture) in self.known

    def add_decodable(self, pixels: str, pictures: Iterable[bytes]) -> None:
        self.added.append(list(pictures))
        self.known |= {(pixels, picture) for picture in self.added[-1]}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Splits]:
    """Ingests a folder, or a source that is given."""

    def run(
        path: Path | None = None,
        source: Source | None = None,
        console: Console | None = None,
        known: Known | None = None,
        **settings: Any,
    ) -> Splits:
        data = Data(source="folder", path=str(path or tmp_path / "data"), **settings)
        store, quarantine = tmp_path / "scratch", tmp_path / "quarantine.csv"
        return ingest(data, source or open_source(data), SPEC, store, quarantine, known, console or Console(quiet=True))

    return run


def places(splits: Splits) -> dict[str, str]:
    """The split of each picture, by its digest."""
    return {digest: split.name for split in splits.all for digest in split.digests}


def members(splits: Splits) -> dict[str, str]:
    """The split of each picture, by its name."""
    return {name: split.name for split in splits.all for name in split.names}


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


# -------------------------------------------------------------------------------------------------- what splits contain


def test_pixels_labels_names_and_bytes_belong_together(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(60)
    plant(tmp_path / "data", files)
    splits = run()
    assert splits.classes == ("ants", "bees")
    assert sorted(members(splits)) == sorted(files)
    for split in splits.all:
        assert isinstance(split, Split)
        assert len(split) == len(split.names) == len(split.digests) == len(split.labels)
        assert split.labels.dtype == np.int32
        assert split.image_shape == (16, 16, 3)
        backwards = np.arange(len(split))[::-1]
        images = split.images(backwards)
        assert images.dtype == np.uint8
        for row, image in zip(backwards, images, strict=True):
            assert (image == decode(files[split.names[row]], SPEC)).all()
            assert split.names[row].startswith(splits.classes[split.labels[row]])
        assert list(splits.encoded(split, np.arange(len(split)))) == [files[name] for name in split.names]
        assert list(splits.encoded(split, np.array([1, 3]))) == [files[split.names[1]], files[split.names[3]]]


def test_classes_may_come_in_any_order(tmp_path: Path, run: Callable[..., Splits]) -> None:
    plant(tmp_path / "data", class_folders(40))
    splits = run(classes=["bees", "ants"])
    assert splits.classes == ("bees", "ants")
    assert all(splits.train.names[i].startswith(splits.classes[k]) for i, k in enumerate(splits.train.labels))


def test_the_same_data_gives_the_same_splits(tmp_path: Path, run: Callable[..., Splits]) -> None:
    plant(tmp_path / "data", class_folders(50))
    first, second = run(), run()
    assert first.digest == second.digest
    assert [split.names for split in first.all] == [split.names for split in second.all]
    images = [split.images(np.arange(len(split))) for split in first.all]
    assert all((a == split.images(np.arange(len(split)))).all() for a, split in zip(images, second.all, strict=True))


def test_the_digest_tells_content_label_and_split(tmp_path: Path, run: Callable[..., Splits]) -> None:
    plant(tmp_path / "data", class_folders(50))
    before = run()
    assert run(validation_fraction=0.3).digest != before.digest
    (tmp_path / "data/ants").rename(tmp_path / "data/other")
    (tmp_path / "data/bees").rename(tmp_path / "data/ants")
    (tmp_path / "data/other").rename(tmp_path / "data/bees")
    assert run().digest != before.digest


def test_file_names_do_not_matter_to_the_digest(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(50)
    before = run(plant(tmp_path / "data", files))
    renamed = {f"{name.split('/')[0]}/{hash(name)}": content for name, content in reversed(files.items())}
    assert run(plant(tmp_path / "renamed", renamed)).digest == before.digest


def test_a_list_of_the_splits(tmp_path: Path, run: Callable[..., Splits]) -> None:
    data = plant(tmp_path / "data", class_folders(40))
    bad = next(data.iterdir()) / "bad.jpg"
    bad.write_bytes(b"no picture")
    splits = run(data)
    write_splits(tmp_path / "splits.csv", splits)
    header, *lines = rows(tmp_path / "splits.csv")
    assert header == ["path", "label", "split", "sha256", "reason"]
    *good, last = lines
    assert {name: split for name, _, split, _, _ in good} == members(splits)
    assert all(name.startswith(label) and places(splits)[digest] == split for name, label, split, digest, _ in good)
    assert last[:3] == [f"{bad.parent.name}/bad.jpg", bad.parent.name, ""]
    assert last[3] == hashlib.sha256(b"no picture").hexdigest()
    assert last[4] == splits.quarantine[0].reason


# ------------------------------------------------------------------------------------------------------- the split rule


@given(st.binary(min_size=32, max_size=32), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_the_first_64_bits_decide(content: bytes, validation: float, test: float) -> None:
    data = Data(source="digits", validation_fraction=validation, test_fraction=test)
    u = int.from_bytes(content[:8]) / 2**64
    expected = "test" if u < test else "validation" if u < test + validation else "train"
    assert split_of(content.hex(), None, set(), data) == expected
    expected = "validation" if u < validation else "train"
    assert split_of(content.hex(), "train", {"train", "test"}, data) == expected
    assert split_of(content.hex(), "test", {"train", "test"}, data) == "test"
    for given_split in ("train", "validation", "test"):
        assert split_of(content.hex(), given_split, {"train", "validation", "test"}, data) == given_split  # type: ignore[arg-type]


def test_the_shares_are_those_asked_for(tmp_path: Path, run: Callable[..., Splits]) -> None:
    splits = run(plant(tmp_path / "data", class_folders(500)), validation_fraction=0.2, test_fraction=0.1)
    assert len(splits.train) == pytest.approx(700, abs=60)
    assert len(splits.validation) == pytest.approx(200, abs=50)
    assert len(splits.test) == pytest.approx(100, abs=40)


def test_no_picture_moves_as_the_folder_grows_or_is_renamed(tmp_path: Path, run: Callable[..., Splits]) -> None:
    before = places(run(plant(tmp_path / "data", class_folders(40))))
    plant(tmp_path / "data", class_folders(60, start=40))
    (tmp_path / "data/ants/0.png").rename(tmp_path / "data/ants/zzz.png")
    after = places(run())
    assert len(after) == 200
    assert before.items() <= after.items()


def test_copies_share_a_split(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(40)
    files |= {f"{name.split('/')[0]}/copies/{name.split('/')[1]}": content for name, content in files.items()}
    splits = run(plant(tmp_path / "data", files))
    assert all(
        split == members(splits)[name.replace("copies/", "")] for name, split in members(splits).items()
    )  # fmt: skip
    assert len(members(splits)) == 160
    assert splits.notes == ("80 pictures are byte-identical copies of others. Copies share one split.",)


def test_one_copy_is_told_in_the_singular(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(10, within="train/") | class_folders(4, start=10, within="test/")
    files["train/ants/leak.png"] = files["test/ants/10.png"]
    assert run(plant(tmp_path / "data", files)).notes[-1] == (
        "1 picture is a byte-identical copy of another. Copies share one split: 1 goes to a more held-out split than "
        "the data gives it."
    )


def test_validation_comes_out_of_train_where_the_data_has_a_test_split(
    tmp_path: Path, run: Callable[..., Splits]
) -> None:
    plant(tmp_path / "data", class_folders(50, within="train/") | class_folders(10, start=50, within="val/"))
    splits = run(validation_fraction=0.3)
    assert all(name.startswith("val/") for name in splits.test.names)
    assert len(splits.test) == 20
    assert all(name.startswith("train/") for name in splits.train.names + splits.validation.names)
    assert len(splits.validation) == pytest.approx(30, abs=15)
    assert "its validation split is used as the test split" in splits.notes[0]


def test_of_copies_in_several_given_splits_the_most_held_out_wins(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(10, within="train/")
    files |= class_folders(4, start=10, within="val/") | class_folders(4, start=20, within="test/")
    files["train/ants/leak.png"] = files["val/ants/leak.png"] = files["test/ants/20.png"]
    files["train/bees/leak.png"] = files["val/bees/10.png"]
    splits = run(plant(tmp_path / "data", files))
    assert [len(split) for split in splits.all] == [20, 9, 10]
    assert {name: split for name, split in members(splits).items() if "leak" in name} == {
        "train/ants/leak.png": "test", "val/ants/leak.png": "test", "train/bees/leak.png": "validation",
    }  # fmt: skip
    assert splits.notes == (
        "3 pictures are byte-identical copies of others. Copies share one split: 3 go to a more held-out split than "
        "the data gives them.",
    )


def test_a_class_that_is_missing_from_a_held_out_split_is_told(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(10, within="train/") | class_folders(4, start=10, within="val/")
    files |= {name: f for name, f in class_folders(4, start=20, within="test/").items() if "ants" in name}
    assert run(plant(tmp_path / "data", files)).notes == ("The test split has no picture of bees.",)


# ----------------------------------------------------------------------------------------------------------- quarantine


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_every_defect_is_handled_or_quarantined_with_its_reason(tmp_path: Path, run: Callable[..., Splits]) -> None:
    image = Image.open(io.BytesIO(picture(999)))
    frames = {"save_all": True, "append_images": [image.rotate(180)]}
    fine = {
        "ants/cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "ants/grey.jpg": encoded(image.convert("L"), "JPEG"),
        "ants/sixteen.png": encoded(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160), "PNG"),
        "ants/turned.jpg": encoded(image, "JPEG", exif=exif(6)),
        "ants/actually a webp.jpg": encoded(image, "WEBP"),
        "ants/no extension": encoded(image.convert("RGBA"), "PNG"),
        "ants/caf\u00e9, \"menu\"\n.png": encoded(image.convert("P"), "PNG"),
    }  # fmt: skip
    bad = {
        "bees/zero.jpg": (b"", "empty file"),
        "bees/notes.txt": (b"some words", "not a JPEG, PNG or WebP picture"),
        "bees/words, quoted.jpg": (b"some other words", "not a JPEG, PNG or WebP picture"),
        "bees/animation.gif": (encoded(image, "GIF", **frames), "not a JPEG, PNG or WebP picture"),
        "bees/animation.webp": (encoded(image, "WEBP", **frames), "animated: 2 frames"),
        "bees/cut.png": (encoded(image, "PNG")[:300], "damaged or truncated"),
        "bees/huge.png": (encoded(Image.new("L", (3000, 1000)), "PNG"), "too large: 3 megapixels, the limit is 2"),
        "bees/0 copy.png": (picture(0, 0), "the same picture is labelled ants and bees"),
        "ants/0.png": (picture(0, 0), "the same picture is labelled ants and bees"),
    }
    files = class_folders(50) | fine | {name: content for name, (content, _) in bad.items()}
    plant(tmp_path / "data", files)
    (tmp_path / "data/bees/gone.jpg").symlink_to(tmp_path / "nowhere")

    console = Listening()
    data = Data(source="folder", path=str(tmp_path / "data"))
    source, list_file = open_source(data), tmp_path / "quarantine.csv"
    splits = ingest(data, source, replace(SPEC, max_megapixels=2.0), tmp_path / "scratch", list_file, None, console)

    reasons = {item.name: item.reason for item in splits.quarantine}
    assert reasons.keys() == bad.keys() | {"bees/gone.jpg"}
    assert all(reasons[name].startswith(reason) for name, (_, reason) in bad.items())
    assert reasons["bees/gone.jpg"] == "cannot be read: No such file or directory"
    assert members(splits).keys() == files.keys() - bad.keys()
    assert rows(list_file) == [["path", "reason"], *([item.name, item.reason] for item in splits.quarantine)]
    assert console.warnings == [
        "10 of 116 pictures are left out: not a JPEG, PNG or WebP picture (3); the same picture is labelled ants and "
        "bees (2); animated: 2 frames (1); 4 other reasons."
    ]
    assert console.steps == console.total == 116
    assert console.note == ""


def test_what_is_in_between_does_not_shift_what_comes_after(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(50)
    broken = {name for i, name in enumerate(files) if i % 12 == 5}
    plant(tmp_path / "data", {name: b"" if name in broken else content for name, content in files.items()})
    splits = run()
    for split in splits.all:
        assert list(splits.encoded(split, np.arange(len(split)))) == [files[name] for name in split.names]
        for name, image in zip(split.names, split.images(np.arange(len(split))), strict=True):
            assert (image == decode(files[name], SPEC)).all()


def test_it_stops_above_the_share_of_bad_pictures_that_is_allowed(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(45) | {f"ants/bad{i}.jpg": b"words" for i in range(9)} | {"ants/zero.jpg": b""}
    plant(tmp_path / "data", files)
    assert len(run(max_bad_fraction=0.1).quarantine) == 10
    with pytest.raises(DataError) as caught:
        run(max_bad_fraction=0.09)
    assert str(caught.value) == (
        "10 of 100 pictures cannot be used, more than data.max_bad_fraction = 0.09 allows: not a JPEG, PNG or WebP "
        f"picture (9); empty file (1). All are listed in {tmp_path / 'quarantine.csv'}. Mend or remove them, or raise "
        "data.max_bad_fraction."
    )
    assert len(rows(tmp_path / "quarantine.csv")) == 11


# --------------------------------------------------------------------------------------- what is left is too little


@pytest.mark.parametrize(
    ("files", "settings", "words"),
    [
        (
            {"ants/a.jpg": b"", "bees/b.jpg": b"words"},
            {"max_bad_fraction": 1.0},
            r"None of the 2 pictures can be used: empty file \(1\); not a JPEG",
        ),
        (
            class_folders(40) | {"cats/a.jpg": b"", "cats/b.jpg": b""},
            {},
            "Nothing is left to learn cats from.* leave the class out",
        ),
        (class_folders(40), {"validation_fraction": 1e-9}, r"The validation split is empty \(pictures: train \d+, "),
        (class_folders(40), {"test_fraction": 1e-9}, r"The test split is empty .* data\.test_fraction"),
        (
            class_folders(9, within="train/")
            | class_folders(2, start=9, within="val/")
            | {"test/ants/a.jpg": b"", "test/bees/b.jpg": b""},
            {},
            r"The test split is empty \(pictures: train 18, validation 4, test 0\)",
        ),
    ],
    ids=["nothing-readable", "no-class", "no-validation", "no-test", "bad-test"],
)
def test_too_little(
    tmp_path: Path, run: Callable[..., Splits], files: dict[str, bytes], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        run(plant(tmp_path / "data", files), **settings)


def test_a_source_without_pictures(run: Callable[..., Splits]) -> None:
    with pytest.raises(DataError, match="no pictures of the classes asked for"):
        run(source=Source(("a", "b"), None, lambda: iter(())))


def test_a_full_disk_is_noticed_before_anything_is_read(
    tmp_path: Path, run: Callable[..., Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "data", class_folders(10))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20 * 16 * 16 * 3 - 1))
    console = Listening()
    with pytest.raises(DataError, match=r"20 x 16 x 16 x 3 bytes = 0 MB in .*scratch.* lower data\.image_size"):
        run(console=console)
    assert console.steps == 0


# --------------------------------------------------------------------------------------------------------- the one pass


def counted(count: int, size: int | None, watch: Callable[[int], None] = lambda i: None) -> Source:
    def read(i: int) -> bytes:
        watch(i)
        return picture(i)

    def examples() -> Iterator[Example]:
        for i in range(count):
            yield Example(f"made/{i}", "ab"[i % 2], None, lambda i=i: read(i))  # type: ignore[misc]

    return Source(("a", "b"), size, examples)


@pytest.mark.parametrize("size", [None, 60, 100, 200])
def test_a_source_may_not_know_its_size(run: Callable[..., Splits], size: int | None) -> None:
    splits = run(source=counted(100, size))
    assert len(members(splits)) == 100
    for split in splits.all:
        for name, image in zip(split.names, split.images(np.arange(len(split))), strict=True):
            assert (image == decode(picture(int(name.split("/")[1])), SPEC)).all()


def test_every_picture_is_read_once_and_few_are_held_at_a_time(run: Callable[..., Splits]) -> None:
    """The first picture waits until nothing more is read: what was read by then is all that is ever held at once."""
    reads: Counter[int] = Counter()
    few = 4 * (os.cpu_count() or 1)

    def watch(i: int) -> None:
        reads[i] += 1
        before = -1
        while i == 0 and before != len(reads):
            before = len(reads)
            time.sleep(0.05)
        if i == 0:
            assert len(reads) <= few

    run(source=counted(100 + 2 * few, None, watch))
    assert set(reads.values()) == {1}
    assert len(reads) == 100 + 2 * few


def test_pictures_that_change_while_a_run_goes_on_are_noticed(tmp_path: Path, run: Callable[..., Splits]) -> None:
    plant(tmp_path / "data", class_folders(40))
    splits = run()
    first, second = splits.test.names[:2]
    (tmp_path / "data" / first).write_bytes(picture(1234))
    with pytest.raises(DataError, match=f"{first} has changed since the run began"):
        list(splits.encoded(splits.test, np.array([0])))
    (tmp_path / "data" / second).unlink()
    with pytest.raises(DataError, match=rf"{second} can no longer be read \(No such file"):
        list(splits.encoded(splits.test, np.array([1])))
    assert len(list(splits.encoded(splits.test, np.array([2, 3])))) == 2


def test_a_source_that_ends_early_the_second_time_is_noticed(run: Callable[..., Splits]) -> None:
    splits = run(source=counted(100, None))
    shorter = replace(splits, source=counted(10, None))
    with pytest.raises(DataError, match=r"gone since the run began: the data ends before number \d+\."):
        list(shorter.encoded(splits.train, np.arange(len(splits.train))))


# ---------------------------------------------------------------------------------------------- pictures that are known


def test_a_picture_that_is_known_is_not_decoded_before_somebody_needs_it(
    tmp_path: Path, run: Callable[..., Splits]
) -> None:
    plant(tmp_path / "data", class_folders(40) | {"ants/words": b"words", "bees/other words": b"other words"})
    known = Remembered(b"words")
    splits = run(known=known, max_bad_fraction=0.5)
    assert [item.name for item in splits.quarantine] == ["bees/other words"]
    (split,) = (split for split in splits.all if "ants/words" in split.names)
    asked = np.array([split.names.index("ants/words")])
    message = (
        r"ants/words cannot be decoded \(not a JPEG, PNG or WebP picture\), although it could be in an earlier run"
    )
    for load in (lambda: split.images(asked), split.load, lambda: list(split.stream(asked))):
        with pytest.raises(DataError, match=message):
            load()


def test_known_or_not_splits_and_pixels_are_the_same(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(60)
    plant(tmp_path / "data", files)
    some = Remembered(*list(files.values())[::3])
    console = Listening()
    every, first, second = run(), run(known=some), run(known=some, console=console)
    assert console.note == "120 of 120 known"
    assert not second.train.pixels.present.any()
    assert every.digest == first.digest == second.digest
    for splits in zip(every.all, first.all, second.all, strict=True):
        rows = np.arange(len(splits[0]))[::-1]
        images, *others = (split.images(rows) for split in splits)
        assert all((images == other).all() for other in others)
    assert (channel_mean(every.train) == channel_mean(run(known=some).train)).all()


def test_what_was_decoded_is_known_afterwards(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(40) | {"ants/empty": b"", "bees/twice": picture(0, 0)}
    plant(tmp_path / "data", files)
    known = Remembered(files["ants/7.png"])
    run(known=known, max_bad_fraction=0.5)
    good = [content for name, content in files.items() if name not in ("ants/empty", "ants/7.png")]
    (added,) = known.added
    assert sorted(added) == sorted(hashlib.sha256(content).digest() for content in good)


def test_it_is_known_also_where_the_run_ends_there(tmp_path: Path, run: Callable[..., Splits]) -> None:
    plant(tmp_path / "data", class_folders(40) | {f"ants/{i}": b"" for i in range(40)})
    known = Remembered()
    with pytest.raises(DataError, match="40 of 120 pictures cannot be used"):
        run(known=known)
    assert len(known.known) == 80


def test_a_known_picture_that_changes_before_it_is_decoded_is_noticed(
    tmp_path: Path, run: Callable[..., Splits]
) -> None:
    files = class_folders(40)
    plant(tmp_path / "data", files)
    splits = run(known=Remembered(*files.values()))
    name = splits.test.names[1]
    (tmp_path / "data" / name).write_bytes(picture(1234))
    with pytest.raises(DataError, match=f"The picture {name} has changed since the run began. Run again"):
        splits.test.images(np.array([0]))
    assert splits.validation.images(np.array([0])).shape == (1, 16, 16, 3)


def test_a_stream_of_a_split_gives_rows_of_the_split(tmp_path: Path, run: Callable[..., Splits]) -> None:
    files = class_folders(60)
    splits = run(plant(tmp_path / "data", files), known=Remembered(*files.values()))
    rows = np.arange(0, len(splits.train), 2)
    batches = list(splits.train.stream(rows, batch_size=8))
    assert (np.concatenate([batch for batch, _ in batches]) == rows).all()
    assert (np.concatenate([images for _, images in batches]) == splits.train.images(rows)).all()


# ---------------------------------------------------------------------------------------------------------------- means


def test_means_are_those_of_the_training_split_alone(run: Callable[..., Splits]) -> None:
    splits = run(source=counted(700, None))
    pixels = np.stack(
        [decode(picture(int(name.split("/")[1])), SPEC) for name in splits.train.names]
    ).astype(np.float64)  # fmt: skip
    assert len(pixels) > 256  # more than one batch
    assert channel_mean(splits.train).dtype == mean_image(splits.train).dtype == np.float32
    np.testing.assert_allclose(channel_mean(splits.train), pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(mean_image(splits.train), pixels.mean(axis=0), rtol=1e-6)

    assert mean_to_subtract("backbone", splits.train) is None
    assert mean_to_subtract("none", splits.train).tolist() == [0, 0, 0]  # type: ignore[union-attr]
    assert mean_to_subtract("channel", splits.train).shape == (3,)  # type: ignore[union-attr]
    assert mean_to_subtract("image", splits.train).shape == (16, 16, 3)  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------------- real pictures


@pytest.mark.skipif(not HYMENOPTERA.is_dir(), reason="the hymenoptera photographs are not there")
def test_real_photographs(tmp_path: Path) -> None:
    data = Data(source="folder", path=str(HYMENOPTERA))
    source, spec = open_source(data), PixelSpec(64, 64)
    splits, again = (
        ingest(data, source, spec, tmp_path / name, tmp_path / "quarantine.csv", None, Console(quiet=True))
        for name in "ab"
    )
    assert splits.classes == ("ants", "bees")
    assert splits.quarantine == ()
    assert len(splits.train) + len(splits.validation) == 244
    assert len(splits.validation) == pytest.approx(0.15 * 244, abs=15)
    assert len(splits.test) == 153
    assert all(name.startswith("val/") for name in splits.test.names)
    assert splits.digest == again.digest
    channels = channel_mean(splits.train)
    assert (channels > 70).all()
    assert (channels < 150).all()


def test_digits_make_three_splits(tmp_path: Path) -> None:
    data = Data(source="digits", classes=["5", "6", "7", "8", "9"])
    splits = ingest(data, open_source(data), SPEC, tmp_path, tmp_path / "quarantine.csv", None, Console(quiet=True))
    assert splits.quarantine == ()
    assert splits.notes == ()
    assert sum(map(len, splits.all)) == 896
    assert all(set(split.labels.tolist()) == {0, 1, 2, 3, 4} for split in splits.all)
