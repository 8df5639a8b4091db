"""The list of findings, and what becomes of an earlier one that a person has written into."""

import csv

import pytest

from pipeline.audit_findings import COLUMNS, Finding, write

BLURRED = Finding("blurred", "ants/1.jpg", "ants", "11" * 32, "train", 1.0, "sharpness 3")
COPY = Finding("copy", "ants/2.jpg", "ants", "22" * 32, "train", 1.0, "identical bytes: ants/1.jpg")
MISLABEL = Finding("likely mislabel", "bees/3.jpg", "bees", "33" * 32, "train", 1.0, "looks like ants")


def rows(path):
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def reviewed(path, actions, encoding="utf-8"):
    """Writes actions into a list, by the pictures' names."""
    lines = [row | {"action": actions.get(row["path"], row["action"])} for row in rows(path)]
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


def actions(path):
    return {row["path"]: row["action"] for row in rows(path)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_a_person_wrote_stays(tmp_path, encoding):
    path = tmp_path / "findings.csv"
    assert write(path, [COPY, MISLABEL, BLURRED]) is None
    assert actions(path) == {"ants/2.jpg": "quarantine", "bees/3.jpg": "", "ants/1.jpg": ""}
    reviewed(path, {"bees/3.jpg": "relabel:ants", "ants/2.jpg": ""}, encoding)
    assert write(path, [BLURRED, MISLABEL, COPY]) is None
    assert actions(path) == {"ants/1.jpg": "", "bees/3.jpg": "relabel:ants", "ants/2.jpg": ""}
    assert [path] == list(tmp_path.iterdir())


def test_a_list_with_actions_that_fit_nothing_is_kept_beside(tmp_path):
    path = tmp_path / "findings.csv"
    write(path, [COPY, MISLABEL])
    reviewed(path, {"bees/3.jpg": "relabel:ants"})
    before = path.read_bytes()
    aside = write(path, [BLURRED])
    assert aside.read_bytes() == before
    assert actions(path) == {"ants/1.jpg": ""}
    assert write(path, [COPY]) is None  # An earlier list with nothing but proposals is of no use.


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"no,columns\n1,2\n"])
def test_a_list_that_cannot_be_read_is_kept_beside(tmp_path, damage):
    path = tmp_path / "findings.csv"
    path.write_bytes(damage)
    assert write(path, [BLURRED]).read_bytes() == damage
    assert actions(path) == {"ants/1.jpg": ""}
