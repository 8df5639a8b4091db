"""The model card: what a model is, what it is for and how good it is, in Markdown, for people and MLflow's registry.

Its headings follow Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import write_atomically
from pipeline.config import RunConfig
from pipeline.metrics import meaning
from pipeline.pages import percent

if TYPE_CHECKING:
    from pipeline.report import Run

MOST_CLASSES = 30
"""With more classes than this, the card has the worst of them alone."""


def write(path: Path, run: "Run") -> None:
    """Writes the card of a run that has been evaluated and exported."""
    text = "\n\n".join(part for part in (_model(run), _figures(run), _classes(run), _data(run), _training(run)) if part)
    # Only a lone surrogate, from a class's name that is not UTF-8, cannot be encoded.
    write_atomically(path, (text + "\n").encode(errors="backslashreplace").decode())


def _model(run: "Run") -> str:
    config, pixels = run.config, run.manifest.pixels
    weights = {"imagenet": "pretrained on ImageNet", "none": "from random weights"}.get(
        config.backbone.weights, f"from {config.backbone.weights}"
    )
    classes = [_cell(name) for name in run.outputs.classes]
    listed = ", ".join(classes[:MOST_CLASSES]) + (", …" if len(classes) > MOST_CLASSES else "")
    return f"""# {config.name}

Classifies pictures into {len(classes)} classes: {listed}.

**{percent(run.scores.metrics["accuracy"])} of {run.scores.n:,} test pictures are right**, 95 % interval \
{percent(run.scores.accuracy_interval[0])} to {percent(run.scores.accuracy_interval[1])}.

## Model

- {config.backbone.name}{_options(config)}, {weights}, with a new head; {_unfrozen(run)}
- Takes JPEG, PNG or WebP bytes, or pixels of {pixels.width} × {pixels.height}; resizing, cropping and
  normalisation are in the model. Gives a probability for each class, after temperature scaling with
  T = {run.scores.temperature:.2f}.
- Made {run.manifest.created_at} by graft {run.manifest.code.graft}, TensorFlow {run.manifest.code.tensorflow}, Keras \
{run.manifest.code.keras}.

## What it is for

Pictures like those it learned from. It gives one of its classes to *any* picture, also to one that shows none of \
them: watch what it is asked (`graft watch`), and treat low probabilities as "unknown". How well it does on other \
cameras, places or people than those in its data has not been measured."""


def _figures(run: "Run") -> str:
    scores = run.scores
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4f} | {meaning(name)} |" for name, value in scores.telling.items()
    )
    return f"""## Figures

On the test split, which this training never saw.{run.leaks}{_doubt(run)}

| figure | value | meaning |
|---|---|---|
{rows}

Expected calibration error before temperature scaling: {scores.calibration_before.ece:.4f}.{run.scaling}"""


def _classes(run: "Run") -> str:
    rows = [row for row in run.scores.per_class if row.support]
    heading = "Every class"
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: row.f1)[:MOST_CLASSES]
        heading = f"The {MOST_CLASSES} classes with the lowest F1"
    table = "\n".join(
        f"| {_cell(row.name)} | {row.precision:.3f} | {row.recall:.3f} | {row.f1:.3f} | {row.support:,} |"
        for row in rows
    )
    return f"""## {heading}

| class | precision | recall | F1 | test pictures |
|---|---|---|---|---|
{table}"""


def _data(run: "Run") -> str:
    data = run.config.data
    return f"""## Data

- {_cell(data.path or data.name or data.source)}
- {run.training:,} training pictures; {len(run.outputs.validation_digests):,} validation pictures, for schedules, \
stopping and the temperature; \
{run.scores.n:,} test pictures{f", of test set {run.manifest.test_set}" if run.manifest.test_set else ""}
- Every picture with its label, split and digest is in `splits.csv` beside this card."""


def _training(run: "Run") -> str:
    phases = "\n".join(
        f"| {number} | {_cell(phase.trains)} | {phase.epochs} | {phase.learning_rate:g} | {phase.optimizer.name} "
        f"| {phase.schedule.name} |"
        for number, phase in enumerate(run.config.phases, start=1)
    )
    digests = "\n".join(f"- {name}: `{value}`" for name, value in run.digests.items())
    return f"""## Training

| phase | what trains | epochs, at most | learning rate | optimizer | schedule |
|---|---|---|---|---|---|
{phases}

{digests}

Again: `{run.command}`"""


def _unfrozen(run: "Run") -> str:
    if not run.record.phases:
        return "its training was recorded without counts."
    most = max(run.record.phases, key=lambda phase: phase.trained)
    return f"{most.trained:,} of {most.trained + most.frozen:,} weights were trained."


def _doubt(run: "Run") -> str:
    return f"\n\n**{run.scores.doubt}**" if run.scores.doubt else ""


def _options(config: RunConfig) -> str:
    return "".join(f", {key} {value}" for key, value in config.backbone.options.items())


def _cell(text: str) -> str:
    """As it may stand in a line or a table: on one line, neither a column's end nor a mark-up of its own."""
    return "".join(f"\\{letter}" if letter in "\\`*_|<>[]#" else letter for letter in " ".join(text.split()))
