"""A config as a file: reading it, overriding its keys, explaining what is wrong with it, writing it."""

import copy
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.config import (
    SGD,
    SHORT,
    Adam,
    AdamW,
    Blocks,
    Constant,
    Cosine,
    From,
    Plateau,
    RMSprop,
    RunConfig,
    Share,
    Step,
    default_phases,
    in_full,
)
from pipeline.errors import ConfigError, did_you_mean


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Reads a config file.

    Args:
        path: the YAML file (YAML 1.2).
        overrides: `dotted.key=value` assignments made before checking; values are YAML, except that a word is taken
            whole, ` #` included. List items go by index, e.g. `phases.0.epochs=3`, in the default phases too.

    Raises:
        ConfigError: the file cannot be read, or it breaks a rule; every broken rule is named.
    """
    return parse(assigned(read(path), overrides or []), str(path))


def read(path: str | Path) -> dict[str, Any]:
    """A config file as it is written, unchecked. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        write = f"graft init {path} > my.yaml" if Path(path).is_dir() else f"graft init FOLDER > {path}"
        raise ConfigError(f"Cannot read the config {path}: {reason}. Write one with: {write}") from None
    tree = yaml(text, f"the config {path}")
    if not isinstance(tree, dict):
        raise ConfigError(
            f"The config {path} must be a mapping of keys such as name, data and backbone. Write one with: graft init "
            "FOLDER"
        )
    return tree


def assigned(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of an unchecked config with `load`'s overrides made. Raises ConfigError."""
    tree = copy.deepcopy(tree)
    for override in overrides:
        _assign(tree, override)
    return tree


def parse(tree: dict[str, Any], where: str = "the config") -> RunConfig:
    """Checks a config that is already a dict. Raises ConfigError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def dump(config: RunConfig) -> str:
    """The complete config as YAML, defaults included; `load` gives back an equal config."""
    stream = io.StringIO()
    YAML().dump(config.model_dump(mode="json", by_alias=True), stream)
    return stream.getvalue()


def schema() -> str:
    """The config's JSON Schema, for editors."""
    return json.dumps(RunConfig.model_json_schema(by_alias=True), indent=2)


class _Constructor(SafeConstructor):
    """Leaves dates as text: YAML 1.2 has none, and no key here takes one."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def yaml(text: str, where: str) -> Any:
    """The value that a text stands for, `where` being its place in the ConfigError that is raised if it is none."""
    parser = YAML(typ="safe", pure=True)
    parser.Constructor = _Constructor
    try:
        return parser.load(text)
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: `!!int x`, or a number of 5000 digits.
        what = " ".join(str(error).split())
        if isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark:
            mark = error.problem_mark
            what = f"Line {mark.line + 1}, column {mark.column + 1}: {' '.join(error.problem.split())}"
            if r"'\t'" in error.problem:
                what += ": a tab, where YAML wants spaces"
        raise ConfigError(f"{where[0].upper()}{where[1:]} is not valid YAML. {what}. Mend it there.") from None


def _assign(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(f"--set takes dotted.key=value, e.g. data.image_size=160. Received: {override}")
    value = yaml(text, f"--set {key}")
    if isinstance(value, str) and value and text.strip().startswith(value):
        value = text.strip()  # Nobody writes a comment into an assignment: a folder may be called `photos #1`.
    *parents, last = key.split(".")
    if parents[:1] == ["phases"] and "phases" not in tree:
        tree["phases"] = [phase.model_dump(mode="json", by_alias=True) for phase in default_phases()]
    node: Any = tree
    try:
        for part in parents:
            at = part if isinstance(node, dict) else int(part)
            below = node.get(at) if isinstance(node, dict) else node[at]
            if part in SHORT:
                below = in_full(part, below)
            node[at] = below if isinstance(below, dict | list) else {}
            node = node[at]
        node[last if isinstance(node, dict) else int(last)] = value
    except (IndexError, ValueError):
        raise ConfigError(
            f"--set {override}: there is no list item of that number in the config. Count the items from 0."
        ) from None


def _explain(error: ValidationError, where: str) -> str:
    problems = []
    for item in error.errors(include_url=False):
        key, parent = _locate(item["loc"])
        # A rule across keys has the whole section as its input, which would say nothing.
        received = "" if isinstance(item["input"], dict | BaseModel) else f" Received: {item['input']!r}."
        if item["type"] == "extra_forbidden":
            last = str(item["loc"][-1])
            message, received = f"unknown key. {_instead(last, _keys(parent), key.removesuffix(last))}", ""
        elif item["type"] == "missing":
            message, received = "required, but missing", ""
        elif item["type"] == "union_tag_invalid":
            message = f"allowed: {item['ctx']['expected_tags']}"
            message, received = _with_meant(message, item["ctx"]["tag"]), f" Received: {item['ctx']['tag']!r}."
        elif item["type"] == "union_tag_not_found":
            key, message, received = f"{key}.name", "required, but missing", ""
        elif item["type"] == "unfreeze":
            given = " ".join(item["input"]) if isinstance(item["input"], dict) else str(item["input"])
            message = f"{item['msg']}. {did_you_mean(given, ('head', 'all', 'blocks', 'from', 'fraction'))}"
            received = f" Received: {item['input']!r}."
        elif item["type"] == "literal_error":
            message = _with_meant(item["msg"], item["input"])
        elif item["type"] == "model_type":
            message = "must be a mapping of keys"
        elif item["type"] == "model_attributes_type":
            message = "must be a word or a mapping of keys"
        else:
            message = item["msg"].removeprefix("Value error, ")
        message = message.rstrip(" .")
        problems.append(f"{key}: {message}{'' if message.endswith('?') else '.'}{received}".removeprefix(": "))
    return f"{where} cannot be used. {' '.join(problems)} What each key takes: graft schema"


def _with_meant(message: str, received: Any) -> str:
    """A message that has the allowed words in quotation marks, with the one that was meant."""
    allowed = re.findall(r"'([^']+)'", message)
    return f"{message}. {did_you_mean(str(received), allowed)}"


def _instead(key: str, allowed: list[str], above: str) -> str:
    """What to write in place of a key that is none of those allowed where it is, below `above`."""
    if elsewhere := [known for known in _everywhere(RunConfig) if known.endswith(f".{key}")]:
        return f"Did you mean {' or '.join(elsewhere)}?"
    return did_you_mean(key, allowed, f"Allowed: {', '.join(allowed)}.", prefix=above)


def _everywhere(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """All keys at and below a model, dotted; of the phases, the first one's."""
    for key in _keys(model):
        yield above + key
        if below := _model_of(model, key):
            yield from _everywhere(below, f"{above}{key}.{'0.' if key == 'phases' else ''}")


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """A dotted key as a user writes it, and the model its last part belongs to.

    Pydantic's locations also hold the tags of unions, which no user wrote.
    """
    parts: list[str] = []
    model: type[BaseModel] | None = RunConfig
    parent = model
    for part in loc:
        if isinstance(part, str) and model is not None and part in _keys(model):
            parent, model = model, _model_of(model, part)
        elif isinstance(part, str) and model is None and part in _TAGGED:
            model = _TAGGED[part]
            continue
        elif isinstance(part, str):
            parent = model
        parts.append(str(part))
    return ".".join(parts), parent


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _model_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The one model that a field holds, itself, optional or in a list; None for a union of several."""
    found: list[type[BaseModel]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        for argument in get_args(annotation):
            visit(argument)

    visit(next(field.annotation for name, field in model.model_fields.items() if key in (name, field.alias)))
    return found[0] if len(found) == 1 else None


_TAGGED: dict[str, type[BaseModel]] = {
    "blocks": Blocks, "from": From, "fraction": Share,
    "sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop,
    "constant": Constant, "cosine": Cosine, "step": Step, "plateau": Plateau,
}  # fmt: skip
