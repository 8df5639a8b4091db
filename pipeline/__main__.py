"""The command line. TensorFlow and MLflow are imported by the commands that need them, when they need them."""

import io
import sys

import typer

from pipeline.commands import COMMANDS

app = typer.Typer(
    help="Pictures and an ImageNet-pretrained network in, a tracked, exported classifier out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    """The `graft` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # File names may hold what the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
