"""`graft promote`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import (
    ConfigOption,
    ExportFolder,
    Name,
    OutputDir,
    Reason,
    errors_in_words,
    registry_uri,
    served_home,
    shown,
)


def promote(
    name: Name,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="From graft models NAME.", min=1)],
    reason: Reason,
    export: ExportFolder = Path("export"),
    output_dir: OutputDir = Path("runs"),
    config: ConfigOption = None,
) -> None:
    """Make a version the champion by hand, past the gate."""
    with errors_in_words():
        from pipeline import promotion
        from pipeline.registry import Registry

        home = served_home(export, name)
        registry = Registry(registry_uri(output_dir, config), name)
        with promotion.alone(home):
            champion = promotion.promote_by_hand(registry, home, version, reason)
        print(f"{name}: version {champion.registered} is champion, served from {shown(home / str(champion.version))}")
