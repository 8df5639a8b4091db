"""A reviewed list, applied to folders and CSV files: what moves, what is refused, and that nothing is lost."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import audit_fix
from pipeline.audit_findings import COLUMNS
from pipeline.audit_fix import apply
from pipeline.commands.data import data as data_command
from pipeline.config import Data
from pipeline.errors import DataError
from pipeline.sources import open_source
from tests.conftest import ROOT

NAMES = ("ants/1.jpg", "ants/2.jpg", "ants/far/3.jpg", "bees/1.jpg", "bees/2.jpg")
MORE = (*NAMES, "ants/4.jpg", "bees/4.jpg", "wasps/1.jpg", "wasps/5.jpg")


def content(name):
    return f"the picture {name}".encode()


def digest(of):
    return hashlib.sha256(of).hexdigest()


def planted(root, names=NAMES):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content(name))
    return Data(source="folder", path=str(root))


def reviewed(path, *rows):
    """A list of names, labels and actions; digests as `planted` makes them, or those given as a fourth."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for name, label, action, *rest in rows:
            sha = rest[0] if rest else digest(content(name))
            writer.writerow({"path": name, "label": label, "sha256": sha, "finding": "dark", "action": action})
    return path


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def record(root):
    with Path(f"{root}-quarantine", "record.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pictures_are_taken_out_and_relabelled(tmp_path):
    root = tmp_path / "photos"
    data = planted(root)
    before = files(root)
    listed = reviewed(
        tmp_path / "list.csv",
        ("ants/1.jpg", "ants", "quarantine"),
        ("ants/far/3.jpg", "ants", " Quarantine "),
        ("bees/2.jpg", "bees", "RELABEL : ants"),
        ("bees/1.jpg", "bees", ""),
    )
    done = apply(data, listed)
    assert (done.quarantined, done.relabelled, done.done_before) == (2, 1, 0)
    out = tmp_path / "photos-quarantine"
    assert done.record == out / "record.csv"
    assert (out / "ants/1.jpg").read_bytes() == before["ants/1.jpg"]
    assert (out / "ants/far/3.jpg").read_bytes() == before["ants/far/3.jpg"]
    # There was an ants/2.jpg.
    moved = f"ants/2-{digest(content('bees/2.jpg'))[:16]}.jpg"
    assert set(files(root)) == {"ants/2.jpg", moved, "bees/1.jpg"}
    assert (root / moved).read_bytes() == before["bees/2.jpg"]
    assert [(row["action"], row["was"], row["now"]) for row in record(root)] == [
        ("quarantine", "photos/ants/1.jpg", "photos-quarantine/ants/1.jpg"),
        ("quarantine", "photos/ants/far/3.jpg", "photos-quarantine/ants/far/3.jpg"),
        ("relabel:ants", "photos/bees/2.jpg", f"photos/{moved}"),
    ]
    assert {example.label for example in open_source(data).examples()} == {"ants", "bees"}


def test_the_record_takes_everything_back(tmp_path):
    root = tmp_path / "photos"
    data = planted(root)
    before = files(root)
    apply(data, reviewed(tmp_path / "list.csv", *((name, name[:4], "quarantine") for name in NAMES[:4])))
    for row in record(root):
        (tmp_path / row["now"]).rename(tmp_path / row["was"])
    assert files(root) == before


def test_a_list_may_be_applied_again(tmp_path):
    data = planted(tmp_path / "photos")
    listed = reviewed(
        tmp_path / "list.csv", ("ants/1.jpg", "ants", "quarantine"), ("ants/far/3.jpg", "ants", "relabel:bees")
    )
    apply(data, listed)
    after = files(tmp_path)
    again = apply(data, listed)
    assert (again.quarantined, again.relabelled, again.done_before) == (0, 0, 2)
    assert files(tmp_path) == after


def test_two_pictures_of_one_name_that_get_one_label_both_stay(tmp_path):
    root = tmp_path / "photos"
    data = planted(root, MORE)
    rows = [("ants/4.jpg", "ants", "relabel:wasps"), ("bees/4.jpg", "bees", "relabel:wasps")]
    apply(data, reviewed(tmp_path / "list.csv", *rows))
    assert sorted(files(root).values()) == sorted(map(content, MORE))
    assert len(list((root / "wasps").iterdir())) == 4


def test_classes_lie_below_split_folders(tmp_path):
    root = tmp_path / "photos"
    names = [f"{split}/{name}" for split in ("train", "val") for name in NAMES]
    data = planted(root, names)
    apply(data, reviewed(tmp_path / "list.csv", ("train/ants/far/3.jpg", "ants", "relabel:bees")))
    assert (root / "train/bees/far/3.jpg").read_bytes() == content("train/ants/far/3.jpg")
    assert len(files(root)) == len(names)


@pytest.mark.parametrize("stop_at", range(4))
def test_an_interruption_is_made_good_by_applying_again(tmp_path, monkeypatch, stop_at):
    root = tmp_path / "photos"
    data = planted(root)
    rows = [(name, name[:4], "quarantine") for name in NAMES[:3]] + [("bees/1.jpg", "bees", "relabel:ants")]
    listed = reviewed(tmp_path / "list.csv", *rows)
    move, moved = audit_fix._move, []

    def stopped(source, target):
        if len(moved) == stop_at:
            raise KeyboardInterrupt
        moved.append(source)
        move(source, target)

    monkeypatch.setattr(audit_fix, "_move", stopped)
    with pytest.raises(KeyboardInterrupt):
        apply(data, listed)
    monkeypatch.undo()
    done = apply(data, listed)
    assert done.quarantined + done.relabelled == 4 - stop_at
    assert done.done_before == stop_at
    assert sorted(files(tmp_path).values()) == sorted(
        [*map(content, NAMES), listed.read_bytes(), done.record.read_bytes()]
    )
    assert {row["was"] for row in record(root)} == {f"photos/{name}" for name in NAMES[:4]}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [("ants/1.jpg", "ants", "quarantine", "0" * 64)],
            "ants/1.jpg is another picture than the one that was reviewed",
        ),
        ([("ants/9.jpg", "ants", "quarantine")], "ants/9.jpg is gone"),
        ([("ants/1.jpg", "ants", "relabel:wasps")], "cannot become wasps: the classes there are ants, bees"),
        ([("ants/1.jpg", "ants", "relabel:../bees")], "cannot become ../bees"),
        ([("ants/1.jpg", "ants", "relabel:")], "row 2: 'relabel:' is no action"),
        ([("ants/1.jpg", "ants", "delete")], "row 2: 'delete' is no action"),
        ([("ants/1.jpg", "ants", "quarantine"), ("ants/1.jpg", "ants", "relabel:bees")], "row 3: ants/1.jpg is to get"),
        ([("../elsewhere/1.jpg", "ants", "quarantine")], "../elsewhere/1.jpg is no picture of"),
        ([("/etc/hostname", "ants", "quarantine")], "/etc/hostname is no picture of"),
        ([("1.jpg", "ants", "quarantine")], "1.jpg is no picture of"),
        ([("ants/1.jpg", "ants", "")], "asks for nothing"),
        ([], "missing: path, label, sha256, action"),
    ],
)
def test_a_list_that_makes_no_sense_changes_nothing(tmp_path, rows, words):
    data = planted(tmp_path / "photos")
    if rows and rows[0][2]:
        rows = [*rows, ("bees/2.jpg", "bees", "quarantine")]
    listed = reviewed(tmp_path / "list.csv", *rows)
    before = files(tmp_path)
    with pytest.raises(DataError) as error:
        apply(data, listed)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (None, "Cannot read the list .*Give the findings.csv that graft data wrote"),
        (b"path,reason\nants/1.jpg,empty file\n", "missing: label, sha256, action. Received: path, reason"),
        (b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
        (b"", "Received: no rows"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path, written, words):
    data = planted(tmp_path / "photos")
    if written is not None:
        (tmp_path / "list.csv").write_bytes(written)
    with pytest.raises(DataError, match=words):
        apply(data, tmp_path / "list.csv")


def test_a_list_that_a_spreadsheet_saved_with_semicolons(tmp_path):
    data = planted(tmp_path / "photos")
    listed = reviewed(tmp_path / "list.csv", ("ants/1.jpg", "ants", "relabel:bees"))
    listed.write_text("\ufeff" + listed.read_text(encoding="utf-8").replace(",", ";"), encoding="utf-8")
    assert apply(data, listed).relabelled == 1
    assert (tmp_path / "photos" / "bees" / "1.jpg").is_file()


def test_the_list_of_another_folder_is_told(tmp_path):
    data = planted(tmp_path / "photos")
    listed = reviewed(tmp_path / "list.csv", ("ants/8.jpg", "ants", "quarantine"), ("ants/9.jpg", "ants", "quarantine"))
    with pytest.raises(DataError, match=r"None of its pictures is in .*photos: is it the list of another folder\?"):
        apply(data, listed)


def test_published_data_sets_are_not_changed(tmp_path):
    listed = reviewed(tmp_path / "list.csv", ("digits/1", "1", "quarantine"))
    with pytest.raises(DataError, match=r"data\.source digits cannot be changed"):
        apply(Data(source="digits"), listed)


def test_a_file_that_cannot_be_read_is_taken_out(tmp_path):
    root = tmp_path / "photos"
    data = planted(root)
    (root / "ants" / "nowhere.jpg").symlink_to("gone.jpg")
    listed = reviewed(tmp_path / "list.csv", ("ants/nowhere.jpg", "ants", "quarantine", ""))
    assert apply(data, listed).quarantined == 1
    assert not os.path.lexists(root / "ants" / "nowhere.jpg")
    assert os.path.lexists(tmp_path / "photos-quarantine" / "ants" / "nowhere.jpg")
    assert apply(data, listed).done_before == 1


def test_a_link_still_leads_to_its_picture(tmp_path):
    root = tmp_path / "photos"
    data = planted(root)
    (root / "ants" / "link.jpg").symlink_to("far/3.jpg")
    sha = digest(content("ants/far/3.jpg"))
    apply(data, reviewed(tmp_path / "list.csv", ("ants/link.jpg", "ants", "relabel:bees", sha)))
    assert (root / "bees" / "link.jpg").is_symlink()
    assert (root / "bees" / "link.jpg").read_bytes() == content("ants/far/3.jpg")


def test_a_name_that_is_not_utf8(tmp_path):
    root = tmp_path / "photos"
    data = planted(root)
    (root / os.fsdecode(b"ants/\xe9.jpg")).write_bytes(b"accent")
    (name,) = (example.name for example in open_source(data).examples() if example.read() == b"accent")
    listed = reviewed(tmp_path / "list.csv", (name, "ants", "quarantine", digest(b"accent")))
    assert apply(data, listed).quarantined == 1
    assert (tmp_path / "photos-quarantine" / os.fsdecode(b"ants/\xe9.jpg")).read_bytes() == b"accent"
    assert apply(data, listed).done_before == 1


def test_what_an_interrupted_copy_left_is_overwritten(tmp_path):
    root = tmp_path / "photos"
    data = planted(root)
    target = tmp_path / "photos-quarantine" / "ants" / "1.jpg"
    target.parent.mkdir(parents=True)
    target.write_bytes(content("ants/1.jpg"))
    apply(data, reviewed(tmp_path / "list.csv", ("ants/1.jpg", "ants", "quarantine")))
    assert [path.name for path in target.parent.iterdir()] == ["1.jpg"]
    assert not (root / "ants/1.jpg").exists()


CONFIG = """\
name: fix
data: {source: folder, path: photos}
backbone: {name: lenet5, weights: none}
"""


def graft(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_applies_a_list(tmp_path):
    planted(tmp_path / "photos")
    reviewed(tmp_path / "list.csv", ("ants/1.jpg", "ants", "quarantine"), ("ants/2.jpg", "ants", "relabel:bees"))
    (tmp_path / "fix.yaml").write_text(CONFIG, encoding="utf-8")
    done = graft("data", "fix.yaml", "--fix", "list.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = Path("photos-quarantine", "record.csv")
    assert done.stdout.splitlines()[:2] == [
        "quarantined 1, relabelled 1, done before 0",
        f"record      {record}",
    ]
    again = graft("data", "fix.yaml", "--fix", "list.csv", "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == {
        "quarantined": 0, "relabelled": 0, "done_before": 2, "record": str(tmp_path / record)
    }  # fmt: skip
    refused = graft("data", "fix.yaml", "--fix", "nowhere.csv", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: Cannot read the list nowhere.csv: No such file or directory. Give the")


def test_the_command_says_how_an_interruption_is_made_good(tmp_path, monkeypatch, capsys):
    planted(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    reviewed(tmp_path / "list.csv", ("ants/1.jpg", "ants", "quarantine"))
    (tmp_path / "fix.yaml").write_text(CONFIG, encoding="utf-8")

    def stopped(data, listed):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_fix, "apply", stopped)
    monkeypatch.setattr("pipeline.commands.data.stop_in_order", lambda: None)
    with pytest.raises(typer.Exit) as stop:
        data_command(Path("fix.yaml"), fix=Path("list.csv"))
    assert stop.value.exit_code == 130
    assert "give the same command again, and it does the rest.\nstopped\n" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- CSV files


def csv_source(tmp_path):
    planted(tmp_path / "files")
    rows = "".join(f'files/{name},{name[:4]},"said ""yes"", {name}"\n' for name in NAMES)
    (tmp_path / "photos.csv").write_text("path, label, note\n" + rows, encoding="utf-8")
    return Data(source="folder", path=str(tmp_path / "photos.csv"))


def csv_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_rows_of_a_csv_file_are_left_out_and_relabelled(tmp_path):
    data = csv_source(tmp_path)
    before = (tmp_path / "photos.csv").read_text(encoding="utf-8")
    listed = reviewed(
        tmp_path / "list.csv",
        ("files/ants/1.jpg", "ants", "quarantine", digest(content("ants/1.jpg"))),
        ("files/bees/2.jpg", "bees", "relabel:ants", digest(content("bees/2.jpg"))),
    )
    done = apply(data, listed)
    assert (done.quarantined, done.relabelled, done.done_before) == (1, 1, 0)
    assert csv_rows(tmp_path / "photos.csv") == [
        ("path", " label", " note"),
        ("files/ants/2.jpg", "ants", 'said "yes", ants/2.jpg'),
        ("files/ants/far/3.jpg", "ants", 'said "yes", ants/far/3.jpg'),
        ("files/bees/1.jpg", "bees", 'said "yes", bees/1.jpg'),
        ("files/bees/2.jpg", "ants", 'said "yes", bees/2.jpg'),
    ]
    assert len(files(tmp_path / "files")) == len(NAMES)
    kept = record(tmp_path / "photos")[0]["now"]
    assert (tmp_path / "photos-quarantine" / kept).read_text(encoding="utf-8") == before
    after = files(tmp_path)
    again = apply(data, listed)
    assert (again.quarantined, again.relabelled, again.done_before) == (0, 0, 2)
    assert files(tmp_path) == after


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("files/ants/1.jpg", "ants", "quarantine", "0" * 64), "another picture than the one that was reviewed"),
        (("files/ants/1.jpg", "bees", "quarantine", ""), "files/ants/1.jpg, bees, is not in photos.csv"),
        (("files/ants/1.jpg", "ants", "relabel:wasps", ""), "cannot become wasps: the classes are ants, bees"),
    ],
)
def test_a_list_that_does_not_fit_a_csv_file_changes_nothing(tmp_path, row, words):
    data = csv_source(tmp_path)
    listed = reviewed(tmp_path / "list.csv", row)
    before = files(tmp_path)
    with pytest.raises(DataError, match=words):
        apply(data, listed)
    assert files(tmp_path) == before


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(MORE), st.sampled_from(["quarantine", "relabel:ants", "relabel:wasps"])),
        unique_by=lambda row: row[0],
    )
)
def test_whatever_a_list_asks_for_no_picture_is_lost(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("data") / "photos"
    data = planted(root, MORE)
    listed = reviewed(root.parent / "list.csv", *((name, name.split("/")[0], action) for name, action in rows))
    for _ in range(2):
        try:
            apply(data, listed)
        except DataError:
            assert not rows
    pictures = [found for name, found in files(root.parent).items() if name.endswith(".jpg")]
    assert sorted(pictures) == sorted(map(content, MORE))


def test_a_kill_in_the_middle_of_a_line_of_the_record_costs_nothing(tmp_path):
    root = tmp_path / "photos"
    data = planted(root)
    apply(data, reviewed(tmp_path / "list.csv", (NAMES[0], "ants", "quarantine")))
    path = tmp_path / "photos-quarantine" / "record.csv"
    path.write_text(path.read_text() + "quarantine,abc")
    apply(data, reviewed(tmp_path / "list.csv", (NAMES[1], "ants", "quarantine")))
    assert [row["was"] for row in record(root)] == [f"photos/{NAMES[0]}", f"photos/{NAMES[1]}"]


def test_one_picture_under_three_labels_gets_one(tmp_path):
    root = tmp_path / "photos"
    data = planted(root, ("ants/0.jpg",))
    for label in ("bees", "flies", "wasps"):
        (root / label).mkdir()
        (root / label / "1.jpg").write_bytes(content("one"))
    rows = [(f"{label}/1.jpg", label, "relabel:ants", digest(content("one"))) for label in ("bees", "flies", "wasps")]
    apply(data, reviewed(tmp_path / "list.csv", *rows))
    assert set(files(root)) == {"ants/0.jpg", "ants/1.jpg"}
    assert (root / "ants/1.jpg").read_bytes() == content("one")


@pytest.mark.parametrize("label", ["..", ".hidden", "."])
def test_a_picture_never_leaves_the_classes(tmp_path, label):
    root = tmp_path / "photos"
    data = planted(root)
    (root / ".hidden").mkdir()
    before = files(root)
    with pytest.raises(DataError, match="the classes there are ants, bees"):
        apply(data, reviewed(tmp_path / "list.csv", ("ants/1.jpg", "ants", f"relabel:{label}")))
    assert files(root) == before


def test_all_other_lines_of_a_csv_file_stay_byte_for_byte(tmp_path):
    planted(tmp_path / "files")
    table = tmp_path / "pictures.csv"
    rows = [f'files/{name}, {name[:4]},"a note, with ""quotes""\r\nand lines",surplus' for name in NAMES]
    raw = b"\xef\xbb\xbf" + "\r\n".join(["path , label,note", *rows, ""]).encode()
    table.write_bytes(raw)
    changes = [("files/ants/2.jpg", "ants", "quarantine"), ("files/bees/1.jpg", "bees", "relabel:ants")]
    listed = [(*row, digest(content(row[0].removeprefix("files/")))) for row in changes]
    done = apply(Data(source="folder", path=str(table)), reviewed(tmp_path / "list.csv", *listed))
    assert (done.quarantined, done.relabelled) == (1, 1)
    (kept,) = (tmp_path / "pictures-quarantine").glob("pictures-*.csv")
    assert kept.read_bytes() == raw
    lines = raw.decode().split("\r\nfiles/")
    relabelled = lines[4].replace(" bees,", "ants,").replace("\r\n", "\r\n")
    assert table.read_bytes().decode() == "\r\nfiles/".join([*lines[:2], lines[3], relabelled, lines[5]])


@pytest.mark.parametrize(
    ("row", "words"),
    [("files/ants/é.jpg,ants".encode("latin-1"), "can't decode byte 0xe9"), (b"a" * 200_000, "field larger than")],
    ids=["not UTF-8", "no rows"],
)
def test_a_csv_file_that_is_none_is_said_to_be_none(tmp_path, row, words):
    data = csv_source(tmp_path)
    table = tmp_path / "photos.csv"
    table.write_bytes(table.read_bytes() + row + b"\n")
    listed = reviewed(tmp_path / "list.csv", ("files/ants/1.jpg", "ants", "quarantine"))
    before = files(tmp_path)
    with pytest.raises(DataError, match=rf"photos\.csv is not a CSV file in UTF-8 with .*{words}.* Save it as one\."):
        apply(data, listed)
    assert files(tmp_path) == before


def test_an_empty_csv_file_lacks_its_columns(tmp_path):
    data = csv_source(tmp_path)
    (tmp_path / "photos.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"photos\.csv lacks the columns label, path"):
        apply(data, reviewed(tmp_path / "list.csv", ("files/ants/1.jpg", "ants", "quarantine")))
