"""What MLflow's pages say in words: names of runs, and descriptions, which are Markdown. No TensorFlow."""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from pipeline.artifacts import Epoch

_LONGEST_VALUE = 24
_LONGEST_NAME = 100
# What a model is called and where things are kept is no difference between models.
_NO_DIFFERENCE = re.compile(r"(name|output_dir|(export|tracking|cache|checkpoint)(\..*)?)")

FIGURES: dict[str, tuple[str, str]] = {
    "test/accuracy": ("0 to 1", "Share of test pictures whose most probable class is the right one."),
    "test/accuracy_low": ("0 to 1", "Lower end of its 95 % interval."),
    "test/accuracy_high": ("0 to 1", "Upper end of its 95 % interval."),
    "test/top5_accuracy": ("0 to 1", "Share of test pictures whose right class is among the five most probable."),
    "test/macro_f1": ("0 to 1", "Mean of the classes' F1 scores; each class counts the same."),
    "test/loss": ("nats", "Mean negative log-likelihood of the right class; 0 is best."),
    "test/ece": ("0 to 1", "Expected calibration error: mean gap between confidence and accuracy; 0 is best."),
    "train/loss": ("nats", "Mean loss on the training pictures of an epoch, as augmented and regularised."),
    "train/accuracy": ("0 to 1", "Share of the training pictures of an epoch, as augmented, that were right."),
    "train/learning_rate": ("", "At the beginning of an epoch."),
    "train/phase": ("", "Which of the config's phases an epoch belongs to, from 1."),
    "validation/loss": ("nats", "Mean negative log-likelihood on the validation pictures, after an epoch."),
    "validation/accuracy": ("0 to 1", "Share of the validation pictures that were right, after an epoch."),
    "validation/calibrated_loss": (
        "nats",
        "Likewise, with the temperature that fits them best: what a sweep compares.",
    ),
    "validation/temperature": ("", "By which the logits are divided so that confidence matches accuracy."),
    "time/epoch_seconds": ("s", "An epoch took, validation included."),
    "time/images_per_second": ("1/s", "Training pictures per second of training."),
    "time/ingest_seconds": ("s", "Reading and checking the pictures took."),
    "time/embedding_seconds": ("s", "Looking for near duplicates took."),
    "time/guard_seconds": ("s", "Keeping what looks like a test picture out of the training took."),
    "time/train_seconds": ("s", "All epochs took."),
    "time/evaluate_seconds": ("s", "Asking the network about the validation and test pictures took."),
    "time/export_seconds": ("s", "Exporting the model, and checking it, took."),
    "time/report_seconds": ("s", "Drawing the report took."),
    "gate/promote": ("0 or 1", "Whether every rule of the gate was kept."),
    "gate/pictures": ("pictures", "That champion and challenger were compared on."),
    "gate/challenger_accuracy": ("0 to 1", "The challenger's accuracy on them."),
    "gate/champion_accuracy": ("0 to 1", "The champion's accuracy on them."),
    "gate/challenger_ece": ("0 to 1", "The challenger's expected calibration error."),
    "gate/champion_ece": ("0 to 1", "The champion's expected calibration error."),
    "gate/challenger_latency_ms": ("ms", "The challenger's median time for one picture."),
    "gate/champion_latency_ms": ("ms", "The champion's median time for one picture."),
    "gate/gain": ("-1 to 1", "The challenger's accuracy less the champion's."),
    "gate/gain_low": ("-1 to 1", "Lower end of its 95 % interval, paired."),
    "gate/gain_high": ("-1 to 1", "Upper end of its 95 % interval, paired."),
    "gate/mcnemar_p": ("0 to 1", "McNemar's p-value: that both are equally good."),
    "kept/calibrated_loss": ("nats", "validation/calibrated_loss of the weights that a run would keep."),
    "kept/accuracy": ("0 to 1", "validation/accuracy of the same weights."),
    "winner/calibrated_loss": ("nats", "kept/calibrated_loss of a sweep's winner."),
    "winner/accuracy": ("0 to 1", "kept/accuracy of a sweep's winner."),
    "noise/calibrated_loss": ("nats", "Its standard deviation over seeds of a sweep's base."),
    "noise/accuracy": ("0 to 1", "Likewise, of kept/accuracy."),
}
"""Every figure of a run by the name it has in MLflow: its unit, and what it is. MLflow's own `system/...` say so
themselves."""


def of_epoch(epoch: Epoch) -> dict[str, float]:
    """An epoch's figures by their names in MLflow."""
    return {
        "train/loss": epoch.loss,
        "train/accuracy": epoch.accuracy,
        "validation/loss": epoch.validation_loss,
        "validation/accuracy": epoch.validation_accuracy,
        "train/learning_rate": epoch.learning_rate,
        "train/phase": epoch.phase,
        "time/epoch_seconds": epoch.seconds,
        "time/images_per_second": epoch.images_per_second,
    }


NOTE = "mlflow.note.content"
"""The tag whose text MLflow's pages show as a description, in Markdown."""

_COMPARE = "Compare runs"
_VIEW = "graft"
# Of the table of runs, by MLflow's names, in pixels; the first ones are always there.
_ALWAYS = {"attributes.`Run Name`": 300, "runDateAndNestInfo": 140, "duration": 80}
_COLUMNS = {
    "metrics.`test/accuracy`": 110, "metrics.`test/loss`": 110, "tags.`graft.role`": 100, "tags.`graft.gate`": 100,
    "attributes.`Models`": 160,
}  # fmt: skip

_ROWS = "\n".join(f"| {name} | {unit} | {meaning} |" for name, (unit, meaning) in FIGURES.items())
_ABOUT = f"""Image classifiers made by Graft. The view **{_COMPARE}**, at the top right, shows figures and decisions \
beside each run.

A run is called by what its command changed in the config; in parentheses is the end of its folder's name. Parameters \
are called as in the config. Tags: `graft.role` is challenger, champion, previous or former; `graft.gate` is what the \
gate decided, `graft.gate_reason` why. Figures, by group:

| figure | unit | |
|---|---|---|
{_ROWS}
| system/... | as named | What the machine did, every 10 seconds. |"""


def _view() -> str:
    """What MLflow's pages keep of a view of the runs that somebody has saved."""
    widths = _ALWAYS | _COLUMNS
    state = {"selectedColumns": list(_COLUMNS), "columnOrder": list(widths), "columnWidths": widths}
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": _COMPARE, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


EXPERIMENT = {
    # MLflow's page opens on training runs and their metrics instead of on language models.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "test/accuracy",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
    NOTE: _ABOUT,
    f"mlflow.sharedViewState.{_VIEW}": _view(),
}
"""The tags of every experiment."""


def page(experiment_id: str) -> str:
    """Where MLflow's pages compare the runs of an experiment, behind the address of the server."""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"


def title(name: str, overrides: Iterable[str], keys: Iterable[str]) -> str:
    """What a run is called: what differs from its config, in short.

    Args:
        name: of the config, for a run without a difference.
        overrides: `dotted.key=value`, as for `config_file.load`.
        keys: all of the config's. The last part of a key is enough where no other key ends in it.
    """
    every = list(keys)
    changes = []
    for override in overrides:
        key, _, value = override.partition("=")
        if not _NO_DIFFERENCE.fullmatch(key):
            changes.append(f"{_short(key, every)}={_cut(' '.join(value.split()))}")
    text = ", ".join(changes) or name
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def _cut(value: str) -> str:
    """A value short enough for a name; of a path the end counts."""
    if len(value) <= _LONGEST_VALUE:
        return value
    return f"…{value[1 - _LONGEST_VALUE :]}" if "/" in value else f"{value[: _LONGEST_VALUE - 1]}…"


def _short(key: str, every: list[str]) -> str:
    parts = key.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[start:])
        others = [other for other in every if other != key and f".{other}".endswith(f".{end}")]
        if not others and not parts[start].isdecimal():
            return end
    return key


def named(title: str, run_dir: Path) -> str:
    """A run's name: what it is called, and the end of its folder's name, by which it is found there."""
    return f"{title} ({run_dir.name.rpartition('-')[2]})"


def finished(sentence: str, figures: Mapping[str, float], run_dir: Path) -> str:
    """The description of a run that has ended well.

    Args:
        sentence: what came of it.
        figures: the ones to show, by the names they have in MLflow.
        run_dir: the run's folder.
    """
    rows = "\n".join(f"| {name} | {value:.4g} | {' | '.join(FIGURES[name])} |" for name, value in figures.items())
    return f"""**{sentence}**

| figure | value | unit | |
|---|---|---|---|
{rows}

Among the artifacts: `report.html` has everything on one page, `model-card.md` is for whoever uses the model, `charts` \
are pictures, `data` says which picture went where and what it was taken for, and `config.yaml` makes the run again.

Its folder: `{run_dir}`"""


def stopped(status: str, reason: str) -> str:
    """The description of a run that has not ended well."""
    return f"**{status.capitalize()}**: {reason}"


def version(sentence: str, card: str) -> str:
    """The description of a model and of its version: the card, but what comes first stands for all in MLflow's lists.

    Args:
        sentence: how good it is.
        card: Markdown that begins with a heading, which MLflow's page has already.
    """
    _, _, rest = card.partition("\n")
    return f"{sentence}\n\n{rest.strip()}"


_OURS = "*Written by Graft, and kept up to date; a text of your own in place of this one stays.*"


def registered_model(name: str, champions: Sequence[tuple[str, int, Mapping[str, str]]]) -> str:
    """The description of a registered model.

    Args:
        name: the model's.
        champions: alias, number and tags of the version that is served and of the one before it, where there are any.
    """
    parts = [f"Image classifier **{name}**: pictures in, a label and probabilities out."]
    if champions:
        rows = "\n".join(f"| {alias} | {_lineage(name, number, tags)} |" for alias, number, tags in champions)
        parts.append(f"| | version | promoted | why |\n|---|---|---|---|\n{rows}")
        parts.append(f"`models:/{name}@champion` is what is served; `@previous` is what a rollback goes back to.")
    else:
        parts.append("No version was promoted yet.")
    parts.append(
        "The description of a version is its model card. Its source run has the data it learned from, every parameter, "
        "the report and the gate's decision. The tags `graft.history...` say what was done here, and when."
    )
    return "\n\n".join([*parts, _OURS])


def is_ours(description: str) -> bool:
    """Whether `registered_model` wrote it, and nobody has since."""
    return description.rstrip().endswith(_OURS)


def _lineage(name: str, number: int, tags: Mapping[str, str]) -> str:
    """Three cells of a Markdown table."""
    when = tags.get("graft.promoted_at", "")[:16].replace("T", " ")
    by = tags.get("graft.decided_by", "")
    reason = " ".join(tags.get("graft.reason", "").split())[:500].replace("|", "\\|")
    link = f"[{number}](#/models/{quote(name)}/versions/{number})"
    return f"{link} | {when} UTC by {by} | {reason}" if when else f"{link} | | "
