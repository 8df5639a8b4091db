"""Which runs can be compared."""

import pytest

from pipeline import compare_runs
from pipeline.artifacts import HISTORY, OUTPUTS
from pipeline.errors import ConfigError, ExportError
from tests.comparing import a_run, compared, pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data"), 200)


def test_what_cannot_be_compared_is_told(tmp_path, data):
    a, b = (a_run(tmp_path / "ants" / name, data) for name in "ab")
    with pytest.raises(ConfigError, match=r"Two to 26 runs can be compared\. Received: 1\."):
        compared(a)
    with pytest.raises(ConfigError, match=r"is one run, .*, given twice"):
        compared(a, b, a)
    (b / OUTPUTS).unlink()
    with pytest.raises(ConfigError, match=r"outputs\.npz is missing.*another version.*Make it again: graft run"):
        compared(a, b)
    (b / OUTPUTS).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="one of its files cannot be read"):
        compared(a, b)
    (a / "model" / "manifest.json").unlink()
    with pytest.raises(ExportError, match="is not a model exported by graft"):
        compared(a, b)


@pytest.mark.parametrize("history", ["[1]", '[{"phase": 1}]', "[", "3"])
def test_a_damaged_history_is_told(tmp_path, data, history):
    a, b = (a_run(tmp_path / "ants" / name, data) for name in "ab")
    (b / HISTORY).write_text(history)
    with pytest.raises(ConfigError, match="one of its files cannot be read"):
        compared(a, b)


def test_a_defect_of_ours_is_not_called_a_damaged_file(tmp_path, data, monkeypatch):
    a, b = (a_run(tmp_path / "ants" / name, data) for name in "ab")
    monkeypatch.setattr(compare_runs, "read_history", len)
    with pytest.raises(TypeError):
        compared(a, b)
