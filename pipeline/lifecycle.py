"""The commands of a model's life after its first run: retraining, promotion, and watching over it."""

import json
import os
import re
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import ConfigPath, Overrides, errors_in_words, graft, shown, stop_in_order
from pipeline.console import Console
from pipeline.errors import ConfigError, TrackingError


class ExitCode(IntEnum):
    """Of `graft retrain --exit-code`. A mistake in the config is 2, as everywhere."""

    PROMOTED = 0
    FAILED = 1
    NOTHING_TO_DO = 3
    REFUSED = 4


Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]


def _checked(name: str) -> str:
    """It becomes a part of paths."""
    from pipeline.config import NAME_PATTERN

    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter("a model's name has letters, digits, dots, dashes and underscores only")
    return name


Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name.", callback=_checked)]
ExportFolder = Annotated[Path, typer.Option("--export", help="Where servers read: the export.dir of the config.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Where runs are: the output_dir of the config.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in MLflow.")]


def retrain(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="End with 0 promoted, 3 nothing to do, 4 refused, 1 failed."),
    ] = False,
) -> None:
    """Train a challenger if there is reason to, and promote it if it is better: one job for a scheduler.

    It ends as one of four: nothing to do, refused, promoted (exit code 0), or failed (1).
    """
    with errors_in_words():
        from pipeline.config_file import load

        stop_in_order()
        loaded = load(config, overrides)
        from pipeline.retrain import retrain as job

        outcome = job(loaded, Console())
        print(f"{loaded.name}: {outcome.outcome}")
        print(f"why         {outcome.reason}")
        if outcome.served is not None:
            print(f"champion    version {outcome.champion}, {shown(Path(outcome.served))}")
        if outcome.gate is not None:
            print(f"gate        {shown(Path(outcome.gate))}")
        if as_json:
            print(outcome.model_dump_json())
        code = ExitCode[outcome.outcome.upper().replace(" ", "_")]
        if exit_code or code == ExitCode.FAILED:
            raise typer.Exit(code)


def schedule(
    config: ConfigPath,
    cron: Annotated[str, typer.Option(help='When, as in crontab: "0 3 * * *" is every night at three.')],
    overrides: Overrides = None,
    jitter: Annotated[int, typer.Option(metavar="SECONDS", help="Start up to so much later, at random.", min=0)] = 0,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Of the times, e.g. Europe/Berlin. If not given, the machine's.")
    ] = None,
) -> None:
    """Run graft retrain at set times, until stopped: a scheduler for one machine."""
    with errors_in_words():
        from pipeline.schedule import schedule as run_schedule

        run_schedule(config, overrides or [], cron, jitter, timezone, Console())


def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of a model; if not given, all names.")] = None,
    output_dir: OutputDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List a model's versions: what they learned from, how good they are, who is champion and why."""
    with errors_in_words():
        from dataclasses import asdict

        from pipeline import registry

        uri = _uri(output_dir)
        if name is None:
            known = registry.names(uri)
            print(json.dumps({"names": known}) if as_json else "\n".join(known) or "no model is registered")
            return
        client = registry.Registry(uri, name)
        rows = registry.table(client)
        if as_json:
            found = {"versions": [asdict(row) for row in rows], "history": client.history()}
            print(json.dumps(found, default=str))
            return
        if not rows:
            names = ", ".join(registry.names(uri)) or "none"
            raise ConfigError(f"No version of {name!r} is registered. Names in the registry: {names}.")
        print(f"{'version':<9}{'':<22}{'made':<18}{'data':<10}test accuracy")
        for row in rows:
            accuracy = "" if row.accuracy is None else f"{row.accuracy:.3f}"
            if row.accuracy_low is not None and row.accuracy_high is not None:
                accuracy += f" ({row.accuracy_low:.3f} to {row.accuracy_high:.3f})"
            marks = [*row.aliases]
            if row.export_version not in (None, str(row.number)):
                marks.append(f"served as {row.export_version}")
            made = f"{row.created_at:%Y-%m-%d %H:%M}"
            print(f"{row.number:<9}{', '.join(marks):<22}{made:<18}{row.data_digest or '':<10}{accuracy}")
            if row.refused:
                print(f"         refused: {row.refused}")
            if row.promoted_at:
                when = row.promoted_at[:16].replace("T", " ")
                print(f"         promoted {when} by {row.decided_by}: {row.reason}")
            if row.rolled_back:
                print(f"         rolled back {row.rolled_back}")


def promote(
    name: Name,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="From graft models NAME.", min=1)],
    reason: Reason,
    export: ExportFolder = Path("export"),
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Make a version the champion by hand, past the gate."""
    with errors_in_words():
        from pipeline import promotion
        from pipeline.registry import Registry

        home = _home(export, name)
        with promotion.alone(home):
            champion = promotion.promote_by_hand(Registry(_uri(output_dir), name), home, version, reason)
        print(f"{name}: version {champion.registered} is champion, served from {shown(home / str(champion.version))}")


def rollback(
    name: Name,
    reason: Reason,
    export: ExportFolder = Path("export"),
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Go back to the champion before. Servers follow at their next look; MLflow may be away."""
    with errors_in_words():
        from pipeline import promotion
        from pipeline.registry import Registry

        home = _home(export, name)
        with promotion.alone(home):
            champion = promotion.go_back(home, reason)
        print(f"{name}: version {champion.registered} is served from {shown(home / str(champion.version))}")
        try:
            registry = Registry(_uri(output_dir), name)
            with promotion.alone(home):
                promotion.agree(registry, home, Console())
            for left in champion.rejected[-1:]:
                when = champion.since[:16].replace("T", " ")
                registry.tag(left.registered, {"graft.rolled_back": f"{when}: {left.reason}"})
            registry.log(f"rolled back to version {champion.registered}: {reason}")
        except TrackingError as error:
            Console().warn(f"The next {graft()} retrain brings MLflow's aliases in line. {error}")


def freeze_test(config: ConfigPath, overrides: Overrides = None) -> None:
    """Let the pictures that wait into the test set, as its next version."""
    with errors_in_words():
        from pipeline.config_file import load
        from pipeline.refreeze import refreeze

        loaded = load(config, overrides)
        before, after = refreeze(loaded, Console())
        if before == after:
            print(f"{loaded.name}: no picture has come or gone, so test set {before.version} stays")
            return
        new, gone = len(after.digests - before.digests), len(before.digests - after.digests)
        print(
            f"{loaded.name}: test set {after.version} has {len(after.pictures)} pictures, {new} of them new; {gone} of "
            f"test set {before.version}'s are no longer in the data. The next challenger is judged on it."
        )


def watch(
    export: Annotated[
        Path, typer.Argument(metavar="EXPORT", help="A model as it is served: EXPORT/NAME, or EXPORT/NAME/VERSION.")
    ],
    samples: Annotated[Path, typer.Option(metavar="DIR", help="As given to graft serve --samples.")],
    as_json: Json = False,
) -> None:
    """Compare what the endpoint is asked with the data a model comes from. Exit code 3 says that it drifted."""
    with errors_in_words():
        from pipeline import publish
        from pipeline.drift import watch as compare

        versions = publish.versions(export)
        drift = compare(export / str(versions[-1]) if versions else export, samples, seed=0)
        print(drift.sentence)
        if as_json:
            print(drift.model_dump_json())
        if drift.drifted:
            raise typer.Exit(3)


COMMANDS = (retrain, schedule, models, promote, rollback, freeze_test, watch)


def _home(export: Path, name: str) -> Path:
    """Where servers read a model."""
    home = export.resolve() / name
    if not home.is_dir():
        there = ", ".join(sorted(path.name for path in export.glob("*") if path.is_dir())) or "none"
        raise ConfigError(
            f"There is no model {name!r} below {shown(export.resolve())}; there: {there}. Give the export.dir of its "
            "config with --export."
        )
    return home


def _uri(output_dir: Path) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else the database in the runs' folder."""
    from pipeline.tracking import default_uri

    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not (output_dir / "mlflow.db").is_file():
        raise TrackingError(
            f"There is no model registry: {output_dir} holds no mlflow.db. Give the output_dir of the runs with "
            "--output-dir, or set MLFLOW_TRACKING_URI where the config's tracking.uri names a server."
        )
    return default_uri(output_dir)
