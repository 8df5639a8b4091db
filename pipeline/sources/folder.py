"""Pictures on disk: class folders, split folders of class folders, or a CSV file that lists them."""

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pipeline.config import Data
from pipeline.errors import DataError
from pipeline.sources.base import Example, Source, SplitName, adopt_splits, choose_classes, listed

SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

_JUNK = {"thumbs.db", "desktop.ini", "icon\r", "__macosx"}  # what operating systems leave behind, besides dot files


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    label: str
    split: SplitName | None


def open_folder(data: Data) -> Source:
    """Finds the pictures of `data.path` without reading them. What is in a file is for the reader to judge.

    `data.path` is one of
    - a folder of class folders; folders within a class folder belong to the class;
    - a folder of train/, val/ (or valid/, validation/) and test/, or the first and one other, with class folders in
      each;
    - a CSV file with the columns path, label and optionally split; relative paths start at the file's own folder.

    Raises:
        DataError: the path is none of these, a class is empty or not in train, or there are fewer than two.
    """
    assert data.path is not None
    root = Path(data.path).expanduser()
    if root.is_dir():
        return _open_folders(root, data)
    if root.is_file():
        return _source(_rows(root), data, ())
    raise DataError(
        f"There is nothing at data.path {root}. It must be a folder of class folders, a folder of train/ val/ test/, "
        f"or a CSV file; relative paths start where graft is run, which is {Path.cwd()}."
    )


def has_split_folders(root: Path) -> bool:
    """Whether the class folders of a folder lie in its train, val and test folders. Raises DataError."""
    return bool(_split_folders(children(root)[0]))


def _split_folders(folders: list[Path]) -> list[Path]:
    found = [folder for folder in folders if folder.name.lower() in SPLIT_WORDS]
    return [] if len(found) == 1 and len(folders) > 1 else found  # "train" may well be a class


def _open_folders(root: Path, data: Data) -> Source:
    folders, beside = children(root)
    split_folders = _split_folders(folders)
    if data.classes:  # Below, the others are passed over, and could not be named.
        found = {_printable(folder.name) for parent in split_folders or [root] for folder in children(parent)[0]}
        choose_classes(found, data.classes)
    if not split_folders:
        files, notes = _class_folders(root, None, folders, beside, data)
        return _source(files, data, notes)

    if others := [_printable(folder.name) for folder in folders if folder not in split_folders]:
        raise DataError(
            f"{root} holds both split folders ({listed([f.name for f in split_folders])}) and others "
            f"({listed(others)}). Have either class folders there or train, val and test: move the rest away."
        )
    notes = _beside(root, beside)
    all_files: list[_File] = []
    seen: dict[SplitName, str] = {}
    for folder in split_folders:
        split = SPLIT_WORDS[folder.name.lower()]
        if split in seen:
            raise DataError(f"{root} has two folders for the {split} split: {seen[split]} and {folder.name}. Keep one.")
        seen[split] = folder.name
        files, more = _class_folders(folder, split, *children(folder), data)
        all_files += files
        notes += more
    return _source(all_files, data, notes)


def _class_folders(
    root: Path, split: SplitName | None, folders: list[Path], beside: list[Path], data: Data
) -> tuple[list[_File], tuple[str, ...]]:
    """The pictures of a folder of class folders, and notes."""
    if not folders:
        raise DataError(
            f"{root} has no class folders. Put the pictures of each class in a folder of its own, named as the class; "
            f"for pictures that are listed in a CSV file, set data.path to that file."
        )
    files: list[_File] = []
    for folder in folders:
        label = _printable(folder.name)
        if data.classes and label not in data.classes:
            continue
        paths = list(_walk(folder, set()))
        if not paths:
            raise DataError(f"The class folder {_printable(str(folder))} is empty. Put pictures in it, or remove it.")
        base = root if split is None else root.parent
        files += [_File(path, _printable(path.relative_to(base).as_posix()), label, split) for path in paths]
    return files, _beside(root, beside)


def _beside(root: Path, files: list[Path]) -> tuple[str, ...]:
    if not files:
        return ()
    return (f"{len(files)} files of {root} lie in no class folder and are left out, e.g. {_printable(files[0].name)}.",)


def _walk(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    """Every file below a folder, sorted; each folder once, so that a link to a folder above does not loop."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in above:
        return
    above.add((status.st_dev, status.st_ino))
    folders, files = children(folder)
    yield from files
    for child in folders:
        yield from _walk(child, above)


def children(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, each sorted, without hidden ones and without pipes and devices."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"Cannot list the folder {_printable(str(folder))}: {error.strerror}. Make it readable."
        ) from None
    entries = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _JUNK]
    folders = [entry for entry in entries if entry.is_dir()]
    # A link that leads nowhere is kept: reading it fails, and the user learns of it.
    files = [entry for entry in entries if entry.is_file() or (entry.is_symlink() and not entry.exists())]
    return folders, files


def _rows(file: Path) -> list[_File]:
    """The pictures a CSV file lists."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            return _parse(text, file)
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}. Make it readable.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file} is not a CSV file in UTF-8 with the columns path, label and optionally split: {error}. Save it "
            "as one."
        ) from None


def _parse(text: TextIO, file: Path) -> list[_File]:
    reader = csv.DictReader(text, skipinitialspace=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    if missing := {"path", "label"} - set(columns):
        raise DataError(
            f"{file}: the first line must name the columns path, label and optionally split; missing: "
            f"{listed(sorted(missing))}. Received: {listed(columns) or 'an empty file'}."
        )
    reader.fieldnames = columns
    files = []
    for row in reader:
        line = f"{file}, line {reader.line_num}"
        for column in ("path", "label"):
            if not row[column]:
                raise DataError(f"{line}: the column {column} is empty. Fill it in, or remove the line.")
        split = None
        if "split" in columns:
            split = SPLIT_WORDS.get((row["split"] or "").strip().lower())
            if split is None:
                raise DataError(
                    f"{line}: the column split must hold one of {', '.join(SPLIT_WORDS)}. Received: {row['split']!r}. "
                    "To have the splits chosen for you, leave the whole column out."
                )
        files.append(_File(file.parent / row["path"], row["path"], row["label"], split))
    if not files:
        raise DataError(f"{file} names its columns but lists no pictures. Add a line for each.")
    return files


def _source(files: Iterable[_File], data: Data, notes: tuple[str, ...]) -> Source:
    files = list(files)
    classes = choose_classes({file.label for file in files}, data.classes)
    files = [file for file in files if file.label in classes]
    becomes: dict[SplitName, SplitName | None] = {}
    given = {file.split for file in files if file.split}
    if given:
        if "train" not in given:
            raise DataError(
                f"The data brings the splits {listed(sorted(given))}, but no train split. Add one, or bring no splits."
            )
        trained = {file.label for file in files if file.split == "train"}
        if untrained := [name for name in classes if name not in trained]:
            raise DataError(
                f"No picture of {listed(untrained)} is in the train split, so the network cannot learn it. Each class "
                "of the other splits must be in train, spelled alike."
            )
        becomes, more = adopt_splits(given)
        notes += more

    def examples() -> Iterator[Example]:
        for file in files:
            yield Example(file.name, file.label, becomes[file.split] if file.split else None, file.path.read_bytes)

    return Source(classes, len(files), examples, notes)


def _printable(name: str) -> str:
    """A file name that can be shown and written as UTF-8: bytes that are not UTF-8 as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
