"""TensorFlow Serving's models.config: which models, which of their versions, and under which labels.

    model_config_list {
      config {
        name: "hymenoptera"
        base_path: "/models/hymenoptera"
        model_platform: "tensorflow"
        model_version_policy { specific { versions: 3 versions: 4 } }
        version_labels { key: "stable" value: 3 }
      }
    }

https://www.tensorflow.org/tfx/serving/serving_config
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from pipeline.errors import ConfigError
from serving.protos import serving_pb2


@dataclass(frozen=True)
class Latest:
    """The `count` versions with the highest numbers; at least 1."""

    count: int = 1


@dataclass(frozen=True)
class All:
    """Every version."""


@dataclass(frozen=True)
class Specific:
    """These versions, as far as they are there."""

    versions: frozenset[int]


Policy = Latest | All | Specific


@dataclass(frozen=True)
class Wanted:
    """One model.

    Attributes:
        name: as it stands in URLs.
        base_path: absolute; its subfolders with integer names are the versions.
        policy: which of them to serve.
        labels: version by label.
    """

    name: str
    base_path: Path
    policy: Policy
    labels: dict[str, int]


def read(path: Path) -> list[Wanted]:
    """The models in a models.config, in its order, at least one. Fields that Graft has no use for are skipped.

    Raises:
        ConfigError: it cannot be read, is not in TensorFlow Serving's format, or asks for what Graft does not serve.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Give a file in TensorFlow Serving's format.") from None
    config = serving_pb2.ModelServerConfig()
    try:
        text_format.Parse(text, config, allow_unknown_field=True)
    except (text_format.ParseError, RecursionError) as error:
        line = f", line {error.GetLine()}," if isinstance(error, text_format.ParseError) else ""
        # The library repeats the whole line, however long.
        raise ConfigError(
            f"{path}{line} is not in TensorFlow Serving's format of models.config: {str(error).rstrip('.')[:300]}. It "
            'must look like model_config_list { config { name: "NAME" base_path: "/FOLDER" model_platform: '
            '"tensorflow" } }.'
        ) from None
    if re.search(r"^\s*custom_model_config\b", text, re.MULTILINE):
        raise ConfigError(f"{path} has a custom_model_config, which Graft does not know. Use a model_config_list.")
    models = config.model_config_list.config
    if not models:
        raise ConfigError(
            f"{path} names no models. It must have at least one config {{ … }} within model_config_list {{ … }}."
        )
    wanted: list[Wanted] = []
    for model in models:
        if any(model.name == other.name for other in wanted):
            raise ConfigError(f"{path} lists the model {model.name!r} more than once. Keep one of its entries.")
        wanted.append(_wanted(path, model))
    return wanted


def versions(policy: Policy, available: Collection[int]) -> set[int]:
    """Those of the available versions that a policy asks for."""
    match policy:
        case Latest(count):
            return set(sorted(available)[-count:])
        case All():
            return set(available)
        case Specific(wanted):
            return set(wanted & set(available))


def _wanted(path: Path, model: serving_pb2.ModelConfig) -> Wanted:
    # What a URL cannot carry between /models/ and the next slash or colon.
    if not re.fullmatch(r"[^/:\x00-\x1f]+", model.name):
        raise ConfigError(
            f"{path}: a model's name must have at least one character, and no slash, colon or control character. "
            f"Received: {model.name!r}."
        )
    where = f"{path}, model {model.name!r}"
    if not model.base_path.startswith("/"):
        raise ConfigError(
            f"{where}: base_path must be an absolute path on this machine, such as /models/{model.name}. "
            f"Received: {model.base_path!r}."
        )
    if model.model_platform not in ("", "tensorflow"):
        raise ConfigError(f'{where}: model_platform must be "tensorflow". Received: {model.model_platform!r}.')
    labels = dict(model.version_labels)
    for label, version in labels.items():
        if not re.fullmatch(r"[^/:\x00-\x1f]+", label) or version < 0:
            raise ConfigError(
                f"{where}: a version label must have at least one character, no slash, colon or control character, "
                f"and a version that is not negative. Received: {label!r} for {version}."
            )
    return Wanted(model.name, Path(model.base_path), _policy(where, model.model_version_policy), labels)


def _policy(where: str, policy: serving_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy) -> Policy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            if not policy.specific.versions:
                raise ConfigError(
                    f"{where}: the policy specific needs at least one version: specific {{ versions: 3 }}. "
                    "Received none."
                )
            return Specific(frozenset(policy.specific.versions))
        case _:
            # TensorFlow Serving's default is the latest, and it takes 0 for 1.
            return Latest(max(policy.latest.num_versions, 1))
