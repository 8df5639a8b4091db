"""`graft init`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import errors_in_words
from pipeline.errors import ConfigError, did_you_mean


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of class folders.")],
    backbone: Annotated[str, typer.Option(help="A name from graft backbones.")] = "mobilenet_v2",
) -> None:
    """Print a commented config for a folder of pictures: graft init DIR > my.yaml."""
    with errors_in_words():
        from pipeline.backbones import BACKBONES
        from pipeline.config import Data
        from pipeline.init import folder_config
        from pipeline.sources import open_source

        if backbone not in BACKBONES:
            allowed = f"Give one of: {', '.join(BACKBONES)}."
            raise ConfigError(f"There is no backbone {backbone!r}. {did_you_mean(backbone, BACKBONES, allowed)}")
        source = open_source(Data(source="folder", path=str(folder)))
        counts = dict.fromkeys(source.classes, 0)
        for example in source.examples():
            counts[example.label] += 1
        print(folder_config(folder, backbone, counts), end="")
