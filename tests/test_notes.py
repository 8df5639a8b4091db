"""Names and descriptions in MLflow's pages."""

from pathlib import Path

import pytest

from pipeline import notes
from pipeline.config_file import load
from pipeline.metrics import METRICS

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        ([], "ants"),
        (["head.dropout=0.2"], "dropout=0.2"),
        (
            ["backbone.name=resnet50", "phases.1.learning_rate=1e-4"],
            "backbone.name=resnet50, phases.1.learning_rate=1e-4",
        ),
        (["phases.0.schedule.name=cosine"], "phases.0.schedule.name=cosine"),
        (["head={dropout: 0.2,   pooling: max}"], "head={dropout: 0.2, pooling:…"),
        (["data.path=/home/you/pictures/of/hymenoptera"], "path=…pictures/of/hymenoptera"),
        (["name=bees", "output_dir=o", "export.dir=e", "tracking.uri=http://you:secret@host", "cache=off"], "ants"),
    ],
)
def test_a_run_is_called_by_what_differs(overrides: list[str], title: str) -> None:
    keys = load(CONFIGS / "hymenoptera.yaml", ["phases.1.schedule.name=cosine"]).flat()
    assert notes.title("ants", overrides, keys) == title


def test_a_key_is_as_short_as_it_can_be_in_this_config() -> None:
    one, two = ["phases.0.learning_rate"], ["phases.0.learning_rate", "phases.1.learning_rate"]
    assert notes.title("ants", ["phases.0.learning_rate=1"], one) == "learning_rate=1"
    assert notes.title("ants", ["phases.0.learning_rate=1"], two) == "phases.0.learning_rate=1"


def test_many_differences_are_cut() -> None:
    title = notes.title("ants", [f"a.key_{i}=value" for i in range(50)], [])
    assert len(title) == 100
    assert title.endswith("…")


def test_a_name_ends_in_what_finds_the_folder() -> None:
    assert notes.named("dropout=0.2", Path("runs/ants/20261121-155609-de1c")) == "dropout=0.2 (de1c)"


def test_every_figure_of_merit_is_explained_in_the_table() -> None:
    assert {f"test/{name}" for name in METRICS} <= notes.FIGURES.keys()
    text = notes.finished("Good.", {"test/loss": 0.123456}, Path("/runs/ants/1"))
    assert "| test/loss | 0.1235 | nats | Mean negative log-likelihood" in text
    assert "`/runs/ants/1`" in text


def test_a_version_is_described_by_its_card_under_one_line_that_counts() -> None:
    assert notes.version("98 % are right", "# ants\n\nTwo classes.\n") == "98 % are right\n\nTwo classes."
    assert notes.version("98 % are right", "") == "98 % are right\n\n"
