"""What changed between runs."""

import pytest

from tests.comparing import a_run, compared, pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data"), 200)


def test_configs_differ_in_keys_with_their_defaults(tmp_path, data):
    phases = [{"epochs": 3, "learning_rate": 1e-3}, {"epochs": 2, "learning_rate": 1e-4, "unfreeze": "all"}]
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, config={"head": {"hidden_units": [64]}, "phases": phases})
    rows = {row.key: (row.default, row.values) for row in compared(a, b).settings}
    assert rows["head.hidden_units"] == ("[]", ["[]", "[64]"])
    assert rows["phases.1.epochs"] == ("–", ["–", "2"])
    assert rows["phases.1.unfreeze"] == ("head", ["–", "all"])
    assert "phases.0.epochs" not in rows
    assert "name" not in rows
    assert "data.path" not in rows
