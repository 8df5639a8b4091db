"""`graft init`: a commented config for a folder of pictures, suited to how many there are."""

import io
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import policy
from pipeline.backbones import BACKBONES
from pipeline.config import Augment, BackboneConfig, Data, Head, Phase, RunConfig, Strict
from pipeline.errors import DataError

# The keys that people change, in the order they are written. Their comments are the descriptions in config.py.
SHOWN: dict[type[Strict], list[str]] = {
    RunConfig: ["name", "seed", "data", "backbone", "head", "phases", "output_dir"],
    Data: ["source", "path", "image_size", "batch_size",
           "validation_fraction", "test_fraction", "class_weights", "augment", "views"],
    Augment: ["flip", "crop_scale", "rotation", "color"],
    BackboneConfig: ["name", "weights"],
    Head: ["hidden_units", "dropout"],
}  # fmt: skip

MOST_CLASSES_LISTED = 30


def folder_config(path: Path, backbone: str, classes: dict[str, int]) -> str:
    """The text of a config for a folder of pictures, with the phases and augmentation that `policy` suggests.

    Args:
        path: the folder, written into the config as it is.
        backbone: a name from the table BACKBONES.
        classes: pictures per class, over all splits.

    Returns:
        YAML that `config_file.load` accepts.

    Raises:
        DataError: there are fewer than two classes.
    """
    if len(classes) < 2:
        raise DataError(
            f"{path} cannot be learned from: it must hold at least two classes, each a folder of pictures. "
            f"Received {len(classes)}. Give the folder that the class folders lie in."
        )
    network = BACKBONES[backbone]
    suggestion = policy.suggest(sum(classes.values()), len(classes), pretrained=network.imagenet)
    config = RunConfig(
        name=_name(path),
        data=Data(
            source="folder",
            path=str(path),
            image_size=network.default_size,
            augment=suggestion.augment,
            views=suggestion.views,
        ),
        backbone=BackboneConfig(name=backbone, weights="imagenet" if network.imagenet else "none"),
        head=Head(dropout=0.2),
        phases=suggestion.phases,
    )
    header = [
        "graft run my.yaml        (or whatever this file is called)",
        "Expected accuracy and runtime: not measured yet; the report of the first run has both.",
        "",
        f"Pictures per class: {_counts(classes)}",
        "",
        f"{suggestion.reason} Pictures unlike everyday photographs, such as X-rays or drawings, want more layers "
        "unfrozen. Where a mirror image means something else, as with letters, set data.augment.flip to none.",
        "",
        "All keys: graft schema. All networks: graft backbones.",
    ]
    return "\n".join([*_comment(header), *_block(config), ""])


def _block(model: Strict, indent: str = "") -> list[str]:
    """The shown keys of one part of the config as lines of YAML, each under its description."""
    lines = []
    for key in SHOWN[type(model)]:
        value = getattr(model, key)
        lines += [""] if not indent else []
        lines += _comment([type(model).model_fields[key].description or ""], indent)
        if type(value) in SHOWN:
            lines += [f"{indent}{key}:", *_block(value, indent + "  ")]
        elif key == "phases":
            lines += [f"{indent}{key}:", *_phases(value)]
        else:
            lines.append(f"{indent}{key}: {_flow(value)}")
    return lines


def _phases(phases: list[Phase]) -> list[str]:
    """The phases as items of a list, under one description of the keys that they use."""
    trees = [
        {key: value for key, value in phase.model_dump(by_alias=True).items() if key == "unfreeze" or _set(phase, key)}
        for phase in phases
    ]
    used = [key for key in Phase.model_fields if any(key in tree for tree in trees)]
    lines = _comment((f"{key}: {Phase.model_fields[key].description}" for key in used), "  ")
    for tree in trees:
        items = [f"{key}: {_flow(tree[key])}" for key in used if key in tree]
        lines += [("  - " if item is items[0] else "    ") + item for item in items]
    return lines


def _set(model: Strict, key: str) -> bool:
    return bool(getattr(model, key) != type(model).model_fields[key].default)


def _flow(value: Any) -> str:
    """A value on one line, quoted where YAML needs it."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 2**31
    # Unusual line breaks are escaped, or YAML would read them as spaces; letters of any alphabet stay legible.
    yaml.allow_unicode = str(value).isprintable()
    yaml.dump({"key": value}, stream)
    return stream.getvalue().strip().removeprefix("{key: ").removesuffix("}")


def _comment(paragraphs: Iterable[str], indent: str = "") -> list[str]:
    mark = f"{indent}# "
    return [
        line
        for paragraph in paragraphs
        for line in textwrap.wrap(paragraph, 100, initial_indent=mark, subsequent_indent=mark, break_long_words=False)
        or [mark.rstrip()]
    ]


def _counts(classes: dict[str, int]) -> str:
    """Pictures per class, in words; the smallest classes alone where there are many."""
    listed = list(classes.items())
    more = ""
    if len(listed) > MOST_CLASSES_LISTED:
        listed = sorted(listed, key=lambda item: item[1])[:MOST_CLASSES_LISTED]
        more = f" (the {MOST_CLASSES_LISTED} smallest)"
    return ", ".join(f"{_printable(name)} {count:,}" for name, count in listed) + more


def _printable(name: str) -> str:
    """A folder may have a line break in its name, which would end the comment it is written in."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _name(path: Path) -> str:
    """A name that RunConfig accepts, from the folder's own."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("._-")[:100] or "pictures"
