"""What the commands share: how a mistake ends, how paths are shown, and the arguments that many of them take."""

import errno
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console as RichConsole
from rich.markup import escape

from pipeline.errors import USERS_TO_MEND, GraftError

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; graft init writes one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. data.image_size=160. May be repeated."),
]


@contextmanager
def errors_in_words() -> Iterator[None]:
    """A mistake ends in one paragraph and an exit code; a defect of ours keeps its traceback."""
    try:
        yield
    except GraftError as error:
        _print_error(str(error))
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in USERS_TO_MEND:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Make room" if full else "See to it that graft may write there"
        _print_error(f"{error.filename or 'The disk'}: {error.strerror}. {remedy}, or choose another folder.")
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("pipeline", "serving"):
            raise
        _print_error(
            f"Training is not installed here, only what graft serve needs ({error.name} is missing). In Graft's "
            "checkout: pip install -c constraints.txt '.[train]'"
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise typer.Exit(130) from None


def _print_error(text: str) -> None:
    RichConsole(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {escape(text)}")


def out() -> RichConsole:
    # Piped output is for programs: no line is broken there.
    return RichConsole(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def shown(path: Path) -> str:
    """As short as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def graft() -> str:
    """The command as it can be typed here: outside an activated environment the bare name is not found."""
    return "graft" if shutil.which("graft") else shown(Path(sys.argv[0]).absolute())


def stop_in_order() -> None:
    """SIGTERM, a scheduler's way to stop a job, does what Ctrl-C does; a second one does not disturb that."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
