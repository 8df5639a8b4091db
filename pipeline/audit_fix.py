"""Applies a reviewed list of findings: takes pictures out of the data, or gives them another label, and loses nothing.

    folder      a picture that is quarantined moves to `<path>-quarantine/`, with the folders it was in; one that is
                relabelled moves to its new class's folder.
    CSV file    its row is left out, or gets the new label, in a new version of the file; pictures stay where they are.

The whole list is checked before anything changes. Each change is written to `<path>-quarantine/record.csv` before it is
made, with where a picture was and where it is now; of a CSV file the version before is kept there, too. Applying a list
again does what is left to do, so an interruption costs nothing.
"""

import codecs
import csv
import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import audit_findings
from pipeline.artifacts import write_atomically
from pipeline.audit_findings import COLUMNS
from pipeline.config import Data
from pipeline.errors import DataError
from pipeline.sources.base import listed
from pipeline.sources.folder import children, has_split_folders

QUARANTINE, RELABEL = "quarantine", "relabel:"
RECORD = ("action", "sha256", "was", "now", "label", "new_label")
_NEEDED = ("path", "label", "sha256", "action")
_MOST_TOLD = 5


@dataclass(frozen=True)
class Applied:
    """What applying a list came to.

    Attributes:
        quarantined: pictures taken out of the data now.
        relabelled: pictures that got another label now.
        done_before: those for which there was nothing left to do.
        record: the file that says what was moved where, by this list and earlier ones.
    """

    quarantined: int
    relabelled: int
    done_before: int
    record: Path


@dataclass(frozen=True)
class _Order:
    """What the list asks for one picture: `new_label` is None for the quarantine."""

    name: str
    label: str
    digest: str
    new_label: str | None

    @property
    def action(self) -> str:
        return QUARANTINE if self.new_label is None else f"{RELABEL}{self.new_label}"


def apply(data: Data, reviewed: Path) -> Applied:
    """Does what the list's column `action` says: `quarantine`, `relabel:CLASS`, or nothing where it is empty.

    Args:
        data: whose pictures.
        reviewed: the list, as `audit` writes it.

    Raises:
        DataError: the list or an action in it makes no sense, a picture is no longer what was reviewed, or the source
            cannot be changed. Nothing has changed then.
        OSError: a file cannot be moved. What was done before that stays done; the list may be applied again.
    """
    if data.source != "folder":
        raise DataError(
            f"The pictures of data.source {data.source} cannot be changed: they are a published data set. Findings can "
            "be applied to a folder or a CSV file (data.source folder); write one that lists the pictures to keep."
        )
    assert data.path is not None
    root = Path(data.path).expanduser()
    orders = _orders(reviewed)
    if root.is_dir():
        return _apply_to_folder(root, orders, reviewed)
    if root.is_file():
        return _apply_to_csv(root, orders, reviewed)
    raise DataError(f"There is nothing at data.path {root}, so {reviewed} cannot be applied. Correct data.path.")


# ------------------------------------------------------------------------------------------------------------ the list


def _orders(reviewed: Path) -> list[_Order]:
    """What the list asks for, one order for each picture and label."""
    try:
        rows = audit_findings.rows(reviewed.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"Cannot read the list {reviewed}: {error.strerror}. Give the findings.csv that graft data wrote and you "
            "reviewed; without --fix, graft data CONFIG writes it and says where."
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The list {reviewed} is not a CSV file in UTF-8: {error}.") from None
    found = list(rows[0]) if rows else []
    if missing := [column for column in _NEEDED if column not in found]:
        raise DataError(
            f"The list {reviewed} must be one that graft data wrote, a CSV file with the columns {', '.join(COLUMNS)}; "
            f"missing: {listed(missing)}. Received: {listed([str(name) for name in found]) or 'no rows'}."
        )
    orders: dict[tuple[str, str], _Order] = {}
    problems = []
    for number, row in enumerate(rows, start=2):
        action = (row["action"] or "").strip()
        if not action:
            continue
        name, label = row["path"], row["label"]
        word, colon, rest = action.partition(":")
        new_label = rest.strip() if f"{word.strip().lower()}{colon}" == RELABEL else None
        if (new_label is None and action.lower() != QUARANTINE) or new_label == "":
            problems.append(f"row {number}: {action!r} is no action")
            continue
        order = _Order(name, label, (row["sha256"] or "").strip(), new_label)
        if orders.setdefault((name, label), order) != order:
            problems.append(f"row {number}: {name} is to get {orders[name, label].action} by an earlier row")
    if problems:
        raise _refused(reviewed, problems, f"Write {QUARANTINE}, {RELABEL}CLASS or nothing, the same for each picture.")
    if not orders:
        raise DataError(
            f"The list {reviewed} asks for nothing: its column action is empty. Write {QUARANTINE} or {RELABEL}CLASS "
            "into the rows of pictures that are to go or to get another label."
        )
    return list(orders.values())


def _refused(reviewed: Path, problems: Sequence[str], remedy: str) -> DataError:
    told = "; ".join(problems[:_MOST_TOLD])
    more = f"; and {len(problems) - _MOST_TOLD} more" if len(problems) > _MOST_TOLD else ""
    return DataError(f"{reviewed} cannot be applied, and nothing was changed: {told}{more}. {remedy}")


# ------------------------------------------------------------------------------------------------------------- folders


def _apply_to_folder(root: Path, orders: Sequence[_Order], reviewed: Path) -> Applied:
    out = _beside(root)
    split_folders = has_split_folders(root)
    todo, problems = [], []
    for order in orders:
        source, target = _on_disk(root, order.name), _target(root, out, order, split_folders)
        if isinstance(target, str):
            problems.append(target)
        elif _holds(source, order.digest):
            if target != source:
                todo.append((order, source, target))
        elif not any(_holds(place, order.digest) for place in _places(target, order)):
            what = "is another picture than the one that was reviewed" if os.path.lexists(source) else "is gone"
            problems.append(f"{order.name} {what}")
    if problems:
        remedy = "Look at the data again with graft data, and review the new list."
        if not any(os.path.lexists(_on_disk(root, order.name)) for order in orders):
            remedy = f"None of its pictures is in {root}: is it the list of another folder?"
        raise _refused(reviewed, problems, remedy)
    record = out / "record.csv"
    base = root.resolve().parent
    moves, changes = [], []
    claimed: dict[Path, str] = {}  # the digest of what goes to each place
    for order, source, target in todo:
        # Where it will lie is free, or holds the same bytes, which an interruption left behind.
        place = next(
            place
            for place in _places(target, order)
            if claimed.get(place, order.digest) == order.digest
            and (not os.path.lexists(place) or _holds(place, order.digest))
        )
        was, now = (_printable(os.path.relpath(path.absolute(), base)) for path in (source, place))
        claimed[place] = order.digest
        moves.append((source, place))
        changes.append((order.action, order.digest, was, now, order.label, order.new_label or ""))
    if moves:
        _note(record, changes)
    for source, place in moves:
        place.parent.mkdir(parents=True, exist_ok=True)
        _move(source, place)
    quarantined = sum(order.new_label is None for order, _, _ in todo)
    return Applied(quarantined, len(todo) - quarantined, len(orders) - len(todo), record)


def _places(target: Path, order: _Order) -> tuple[Path, Path]:
    """Where a picture may go: the second where another one has the first."""
    return target, target.with_name(f"{target.stem}-{order.digest[:16] or 'unreadable'}{target.suffix}")


def _holds(path: Path, digest: str) -> bool:
    return os.path.lexists(path) and _digest(path) == digest


def _beside(root: Path) -> Path:
    """Where what is taken out goes: beside the data, not in it."""
    root = root.resolve()
    return root.with_name(f"{root.stem if root.is_file() else root.name}-quarantine")


def _target(root: Path, out: Path, order: _Order, split_folders: bool) -> Path | str:
    """Where a picture goes; or why it cannot go anywhere, in words."""
    parts = PurePosixPath(order.name).parts
    at = 1 if split_folders else 0  # where the class is named
    if len(parts) < at + 2 or ".." in parts or PurePosixPath(order.name).is_absolute():
        return f"{order.name} is no picture of {root}"
    if order.new_label is None:
        return _on_disk(out, order.name)
    classes = root.joinpath(*parts[:at])
    there = sorted(_printable(folder.name) for folder in children(classes)[0]) if classes.is_dir() else []
    if order.new_label not in there:
        return f"{order.name} cannot become {order.new_label}: the classes there are {listed(there) or 'none'}"
    return _on_disk(root, str(PurePosixPath(*parts[:at], order.new_label, *parts[at + 1 :])))


def _on_disk(folder: Path, name: str) -> Path:
    """The file of a name as sources write it, with \\xff for a byte that is not UTF-8."""
    path = folder / name
    if os.path.lexists(path) or "\\x" not in name:
        return path
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda code: bytes([int(code[1], 16)]), name.encode())
    return folder / os.fsdecode(raw)


def _digest(path: Path) -> str:
    """SHA-256 of a file as the list has it: empty for one that cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _note(record: Path, changes: Sequence[tuple[str, ...]]) -> None:
    """Adds to the record what it does not have yet, and sees it on the disk."""
    record.parent.mkdir(parents=True, exist_ok=True)
    known = record.read_text(encoding="utf-8") if record.exists() else ""
    whole = known[: known.rfind("\n") + 1]  # A process that was killed may have left half a line.
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if not whole:
        writer.writerow(RECORD)
    there = {tuple(row) for row in csv.reader(io.StringIO(whole, newline=""))}
    writer.writerows(change for change in changes if change not in there)
    with record.open("a", encoding="utf-8", newline="") as file:
        file.truncate(len(whole.encode()))
        file.write(stream.getvalue())
        file.flush()
        os.fsync(file.fileno())


def _move(source: Path, target: Path) -> None:
    """Moves a file, or what a link leads to by a new link; across file systems it is copied first."""
    partial = target.with_name(f".{target.name}.part")
    if source.is_symlink():  # A relative link would lead nowhere from its new place.
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.realpath(source))
    else:
        try:
            source.replace(target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        shutil.copy2(source, partial)
    partial.replace(target)
    source.unlink()


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# ----------------------------------------------------------------------------------------------------------- CSV files


def _apply_to_csv(file: Path, orders: Sequence[_Order], reviewed: Path) -> Applied:
    raw, lines, table = _table(file)
    columns = [column.strip() for column in table[0][0]] if table else []
    if missing := {"path", "label"} - set(columns):
        raise DataError(
            f"{file} lacks the columns {listed(sorted(missing))}, so {reviewed} cannot be applied to it. Correct "
            "data.path, or add them."
        )
    path, label = columns.index("path"), columns.index("label")
    rows = [(cells, those) for cells, those in table[1:] if len(cells) > max(path, label)]
    out = _beside(file)
    record = out / "record.csv"
    noted = _recorded(record)
    wanted = {(order.name, order.label): order for order in orders}
    present = {(cells[path], cells[label]) for cells, _ in rows}
    labels = {cells[label] for cells, _ in rows}
    problems, todo = [], {}
    for key, order in wanted.items():
        change = (order.action, order.digest, order.name, order.label)
        if key not in present:
            if change not in noted:
                problems.append(f"{order.name}, {order.label}, is not in {file.name}")
        elif order.new_label is not None and order.new_label not in labels:
            problems.append(f"{order.name} cannot become {order.new_label}: the classes are {listed(sorted(labels))}")
        elif _digest(file.parent / order.name) != order.digest:
            problems.append(f"{order.name} is another picture than the one that was reviewed")
        elif order.new_label != order.label:
            todo[key] = order
    if problems:
        raise _refused(reviewed, problems, "Look at the data again with graft data, and review the new list.")
    if todo:
        before = out / f"{file.stem}-{hashlib.sha256(raw).hexdigest()[:8]}{file.suffix}"
        _note(
            record,
            [
                (order.action, order.digest, order.name, before.name, order.label, order.new_label or "")
                for order in todo.values()
            ],
        )
        shutil.copy2(file, before)
        for cells, those in reversed(rows):  # All other lines stay as they are, byte for byte.
            asked = todo.get((cells[path], cells[label]))
            if asked is not None:
                new = [] if asked.new_label is None else [_row(cells, label, asked.new_label, lines[those][-1])]
                lines[those] = new
        text = "".join(lines)
        write_atomically(file, "\ufeff" + text if raw.startswith(codecs.BOM_UTF8) else text, durable=True)
    quarantined = sum(order.new_label is None for order in todo.values())
    return Applied(quarantined, len(todo) - quarantined, len(wanted) - len(todo), record)


def _table(file: Path) -> tuple[bytes, list[str], list[tuple[list[str], slice]]]:
    """A CSV file's bytes, its lines, and the cells of each row, the names of the columns first, with the row's place
    among the lines. Raises DataError."""
    try:
        raw = file.read_bytes()
        lines = list(io.StringIO(raw.decode("utf-8-sig"), newline=""))
        reader = csv.reader(lines, skipinitialspace=True)
        rows, start = [], 0
        for cells in reader:
            rows.append((cells, slice(start, reader.line_num)))
            start = reader.line_num
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}. Make it readable.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file} is not a CSV file in UTF-8 with the columns path, label and optionally split: {error}. Save it "
            "as one."
        ) from None
    return raw, lines, rows


def _row(cells: Sequence[str], label: int, new_label: str, line: str) -> str:
    """A row with another label, which ends as `line` does."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator=line[len(line.rstrip("\r\n")) :]).writerow(
        [*cells[:label], new_label, *cells[label + 1 :]]
    )
    return stream.getvalue()


def _recorded(record: Path) -> set[tuple[str, str, str, str]]:
    """Action, digest, path and label of each change that was recorded."""
    if not record.exists():
        return set()
    with record.open(encoding="utf-8", newline="") as file:
        return {(row["action"], row["sha256"], row["was"], row["label"]) for row in csv.DictReader(file)}
