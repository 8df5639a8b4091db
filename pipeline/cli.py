"""What the commands share: how a mistake ends, how paths are shown, and the arguments that many of them take."""

import errno
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console as RichConsole

from pipeline.console import Console
from pipeline.errors import USERS_TO_MEND, ConfigError, GraftError, TrackingError, did_you_mean

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; graft init writes one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. data.image_size=160. May be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, errors and the result.")]


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


def _with_folders(context: typer.Context, config: Path | None) -> Path | None:
    """Has the config's folders stand where none are typed."""
    if config is not None:
        with errors_in_words():
            from pipeline.config_file import load

            loaded = load(config)
        context.default_map = {"export": loaded.export.dir, "output_dir": loaded.output_dir}
    return config


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="A config whose output_dir, export.dir and tracking.uri hold.",
        callback=_with_folders,
        is_eager=True,
    ),
]


@contextmanager
def errors_in_words() -> Iterator[None]:
    """A mistake ends in one paragraph and an exit code; a defect of ours keeps its traceback."""
    try:
        yield
    except GraftError as error:
        Console().error(str(error))
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in USERS_TO_MEND:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Make room" if full else "See to it that graft may write there"
        Console().error(f"{error.filename or 'The disk'}: {error.strerror}. {remedy}, or choose another folder.")
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("pipeline", "serving"):
            raise
        Console().error(
            f"Training is not installed here, only what graft serve needs ({error.name} is missing). In Graft's "
            "checkout: pip install -c constraints.txt '.[train]'"
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise typer.Exit(130) from None


def out() -> RichConsole:
    # Piped output is for programs: no line is broken there.
    return RichConsole(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def shown(path: Path, there: Path | None = None) -> str:
    """As short as it can be typed there. Default: here."""
    there = there or Path.cwd()
    return str(path.relative_to(there) if path.is_relative_to(there) else path)


def graft(there: Path | None = None) -> str:
    """The command as it can be typed in a folder, by default this one: outside an activated environment the bare name
    is not found."""
    program = Path(sys.argv[0]).absolute()
    return "graft" if shutil.which("graft") or program.name != "graft" else shown(program, there)


def stop_in_order() -> None:
    """SIGTERM, a scheduler's way to stop a job, does what Ctrl-C does; a second one does not disturb that."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def byte_size(text: str, option: str) -> int:
    """Bytes of an option such as 2GB.

    Raises:
        ConfigError: it is no size.
    """
    from pydantic import ByteSize, TypeAdapter

    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option} must be a size such as 2GB, 500MB or 0. Received: {text!r}.") from None


def served_home(export: Path, name: str) -> Path:
    """Where servers read a model."""
    home = export.resolve() / name
    if not home.is_dir():
        there = sorted(path.name for path in export.glob("*") if path.is_dir())
        allowed = f"There: {', '.join(there) or 'none'}. Give the export.dir of its config with --export."
        raise ConfigError(
            f"There is no model {name!r} below {shown(export.resolve())}. {did_you_mean(name, there, allowed)}"
        )
    return home


def registry_uri(output_dir: Path, config: Path | None = None) -> str:
    """Where MLflow is: the config's tracking.uri, else MLFLOW_TRACKING_URI, else the database in the runs' folder."""
    from pipeline.mlflow_client import default_uri, resolve_uri

    if config is not None:
        from pipeline.config_file import load

        loaded = load(config)
        if loaded.tracking.uri:
            return resolve_uri(loaded)
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not (output_dir / "mlflow.db").is_file():
        raise TrackingError(
            f"There is no model registry: {output_dir} holds no mlflow.db. Give the output_dir of the runs with "
            "--output-dir, or the config with --config; or set MLFLOW_TRACKING_URI where that names a server."
        )
    return default_uri(output_dir)
