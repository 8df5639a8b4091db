"""What a sweep was asked for: what is refused before anything is made, and which configs follow."""

import pytest
import typer
from typer.testing import CliRunner

from pipeline import sweep_plan
from pipeline.artifacts import BackboneIdentity, RunRecord
from pipeline.commands.sweep import sweep
from pipeline.errors import ConfigError, WeightsError
from tests.sweeping import begin


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_to_start_from_is_the_same_to_the_end(here):
    def finish(name, day):
        run_dir = here / "runs" / "mother" / name
        run_dir.mkdir(parents=True)
        (run_dir / "backbone.weights.h5").touch()
        lenet = BackboneIdentity(name="lenet5", options={})
        RunRecord(
            name="mother", status="finished", run_dir=str(run_dir), started_at=day, finished_at=day,
            tracking_uri="", backbone=lenet,
        ).write(run_dir / "run.json")  # fmt: skip

    finish("first", "2026-01-01")
    begun = begin("head.dropout=[0.1]", overrides=["backbone.weights=run:mother"])
    varied = begin("backbone.weights=[none, 'run:mother']")
    finish("second", "2026-01-02")
    again = sweep_plan.reopened(begun.folder)
    assert {again.base.backbone.weights, again.config(again.grid[0]).backbone.weights} == {"run:first"}
    varied = sweep_plan.reopened(varied.folder)
    assert {varied.config(point).backbone.weights for point in varied.grid} == {"none", "run:first"}
    with pytest.raises(WeightsError, match="no finished run"):
        begin("head.dropout=[0.1]", overrides=["backbone.weights=run:father"])


@pytest.mark.parametrize(
    ("over", "options", "words"),
    [
        (
            ["phases.0.learning_rate=[1e-3, -1]"],
            {},
            r"learning_rate=-1 cannot be used\. phases\.0\.learning_rate: .*-1",
        ),
        (["head.widht=[1, 2]"], {}, r"head\.widht: unknown key"),
        (["head.dropout=0.5..1.5"], {}, r"head\.dropout=1\.5 cannot be used"),
        (["head.activation=[relu, elu]"], {}, "activation has no effect without hidden_units"),
        (["phases.7.epochs=[1, 2]"], {}, "no list item of that number"),
        (["head.dropout=[0.1]"], {"trials": 5}, "--trials has no effect on a grid"),
        (["head.dropout=0.1..0.2"], {"search": "grid"}, "A grid needs lists"),
    ],
)
def test_every_combination_is_checked_before_anything_is_made(over, options, words, here):
    with pytest.raises(ConfigError, match=words):
        begin(*over, **options)
    assert not list(here.iterdir())


def test_a_folder_that_is_no_sweep_is_named(here):
    with pytest.raises(ConfigError, match=r"must hold a sweep\.json"):
        sweep_plan.reopened(here)


def test_a_password_is_kept_nowhere_but_in_the_journal(here):
    begun = begin("head.dropout=[0.1]", overrides=["tracking.uri=http://me:secret@127.0.0.1:9"])
    assert "secret" not in (begun.folder / "sweep.json").read_text()
    journal = begun.folder / "tracking.jsonl"
    assert "secret" in journal.read_text()
    assert journal.stat().st_mode & 0o077 == 0
    option, why = sweep_plan.reopened(begun.folder).place
    assert option == " --set 'tracking.uri=http://me:***@127.0.0.1:9'"
    assert "password in place of ***" in why
    assert begin("head.dropout=[0.1]").place == ("", "")


def test_a_grid_reads_each_set_of_pictures_once(here):
    begun = begin("data.crop=[1.0, 0.8]", "head.dropout=[0.0, 0.1]")
    assert [point["data.crop"] for point in begun.grid] == ["1.0", "1.0", "0.8", "0.8"]
    begun = begin("head.dropout=[0.0, 0.1]", "data.crop=[0.8, 1.0]")
    assert [point["data.crop"] for point in begun.grid] == ["0.8", "0.8", "1.0", "1.0"]


@pytest.mark.parametrize(
    ("key", "values", "differs"),
    [
        ("phases.0.schedule", "[cosine, constant]", ["base", "phases.0.schedule=constant"]),
        ("head.hidden_units", "[[], [64]]", ["base", "head.hidden_units=[64]"]),
        ("phases.0.unfreeze", "[all, {from: c5}]", ["base", "phases.0.unfreeze={from: c5}"]),
        ("head.dropout", "[0, 0.1]", ["base", "head.dropout=0.1"]),
    ],
)
def test_a_trial_is_named_by_what_differs_from_the_base(key, values, differs, here):
    begun = begin(f"{key}={values}")
    assert [begun.differs(begun.config(point), point) for point in begun.grid] == differs
    assert begun.base_point == begun.grid[0]


@pytest.mark.parametrize("option", [("--seeds", "8"), ("--trials", "3"), ("--search", "tpe"), ("--set", "a=1")])
def test_a_sweep_that_goes_on_takes_no_other_values(option, here):
    command = typer.Typer()
    command.command()(sweep)
    refused = CliRunner().invoke(command, ["--resume", str(begin("head.dropout=[0.1]").folder), *option])
    assert refused.exit_code == 2
    assert "or --resume SWEEP_DIR alone." in " ".join(refused.stderr.split())
