"""MLflow's model registry: which versions of a model there are, which one is the champion, and why.

    alias champion       the version that is served
    alias previous       the champion before it, for a rollback
    tags of a version    graft.data_digest, graft.export_version, graft.export_dir, graft.run_dir: what it is
                         graft.promoted_at, graft.reason, graft.decided_by: how it became the champion
                         graft.role: champion, previous, former (once one of the two) or challenger (never yet); its
                         run has this tag, too
    tags of the model    graft.history.<UTC time>: what was done, a line each
    description          of the model: who is champion since when, and why; of a version: its model card

MLflow never gives a version's number again, also when the version was removed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pipeline import notes
from pipeline.errors import TrackingError
from pipeline.mlflow_client import asking, connect, shorten_timeout

CHAMPION = "champion"
PREVIOUS = "previous"

ROLE = "graft.role"
"""The tag of a version, and of its run, that says what part it plays."""
CHALLENGER = "challenger"
FORMER = "former"

_HISTORY = "graft.history."
_HISTORY_LINES = 100
# PostgreSQL and MySQL have room for so many characters in a registered model's tag.
_TAG_CHARACTERS = 5000


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        number: 1 is the first.
        run_id: MLflow's id of the run that made it.
        created_at: UTC.
        aliases: sorted.
        tags: all of them, also those of others.
    """

    number: int
    run_id: str
    created_at: datetime
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


class Registry:
    """The versions of one model. Nothing is asked of MLflow before the first call.

    Every method raises TrackingError where MLflow is away or refuses.
    """

    def __init__(self, uri: str, name: str) -> None:
        """Args: uri: as `mlflow_client.resolve_uri` gives it. name: of the registered model; it may be missing."""
        shorten_timeout()
        self._uri, self._name = uri, name

    def versions(self) -> list[Version]:
        """All versions, the newest first; none where the model is missing."""
        with self._asking("list the versions"):
            return self._found(f"name = '{self._name}'")

    def version(self, number: int) -> Version | None:
        """One version; None where there is no such one."""
        return next((version for version in self.versions() if version.number == number), None)

    def champion(self) -> Version | None:
        """The version that is served; None before the first promotion."""
        return self._of_alias(CHAMPION)

    def previous(self) -> Version | None:
        """The champion before the champion; None where there is none."""
        return self._of_alias(PREVIOUS)

    def of_run(self, mlflow_run_id: str) -> Version | None:
        """The version that a run made; None where it was not registered."""
        with self._asking("look for a run's version"):
            # MLflow cannot filter by name and run at once.
            return next(iter(self._found(f"run_id = '{mlflow_run_id}'")), None)

    def register(self, mlflow_run_id: str, tags: Mapping[str, str]) -> Version:
        """Makes a version of a run's logged model, or finds the one there is, and sets its tags.

        Raises:
            TrackingError: also where the run has no logged model.
        """
        with self._asking("register a version"):
            model = logged_model(self._client, mlflow_run_id)
            if model is None:
                raise TrackingError(
                    f"The MLflow run {mlflow_run_id} has no logged model, so there is nothing to register as a version "
                    f"of {self._name}. Deliver what the run has kept, then try again: graft sync RUN_DIR"
                )
            register_logged_model(self._client, self._name, mlflow_run_id, model, tags)
            (version,) = self._found(f"run_id = '{mlflow_run_id}'")
            return version

    def tag(self, number: int, values: Mapping[str, str]) -> None:
        """Sets tags of a version; an earlier value is replaced."""
        with self._asking(f"tag version {number}"):
            for key, value in values.items():
                self._client.set_model_version_tag(self._name, str(number), key, value)

    def alias(self, alias: str, number: int | None) -> None:
        """Points an alias at a version, away from any other, at once; None removes it."""
        with self._asking(f"set the alias {alias}"):
            if number is not None:
                self._client.set_registered_model_alias(self._name, alias, str(number))
            elif self._model() is not None:
                self._client.delete_registered_model_alias(self._name, alias)

    def mark(self) -> None:
        """Says on each version, on its run and in the model's description what the aliases make of it."""
        with self._asking("mark the champion"):
            for version in self._found(f"name = '{self._name}'"):
                role = _role(version)
                if role != version.tags.get(ROLE):
                    assert role is not None
                    run = _unless_missing(self._client.get_run, version.run_id)
                    if run is not None and run.info.lifecycle_stage == "active":  # Else it was removed.
                        self._client.set_tag(version.run_id, ROLE, role)
                    self._client.set_model_version_tag(self._name, str(version.number), ROLE, role)
            _describe(self._client, self._name)

    def delete(self, number: int) -> None:
        """Removes a version and its aliases; nothing happens where it is gone already."""
        with self._asking(f"remove version {number}"):
            _unless_missing(self._client.delete_model_version, self._name, str(number))

    def log(self, text: str) -> None:
        """Adds a line to the model's history, creating the model where missing; lines beyond 100 go, the oldest first.

        Args:
            text: up to 5000 characters; the rest is cut.
        """
        with self._asking("add to the history"):
            ensure_model(self._client, self._name)
            key = f"{_HISTORY}{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
            self._client.set_registered_model_tag(self._name, key, text[:_TAG_CHARACTERS])
            # The new line stays, also where the clock was set back.
            others = sorted(tag for tag in self._tags() if tag.startswith(_HISTORY) and tag != key)
            for tag in others[: -(_HISTORY_LINES - 1)]:
                self._client.delete_registered_model_tag(self._name, tag)

    def history(self) -> list[str]:
        """The lines as `<UTC time> <text>`, the oldest first."""
        with self._asking("read the history"):
            lines = {key.removeprefix(_HISTORY): text for key, text in self._tags().items() if key.startswith(_HISTORY)}
            return [f"{time[:10]} {time[11:19]} {lines[time]}" for time in sorted(lines)]

    def metrics(self, version: Version) -> dict[str, float]:
        """The last values of its run's metrics, e.g. test/accuracy; none where the run was removed."""
        with self._asking(f"read the metrics of version {version.number}"):
            run = _unless_missing(self._client.get_run, version.run_id)
            return {} if run is None else dict(run.data.metrics)

    def _of_alias(self, alias: str) -> Version | None:
        return next((version for version in self.versions() if alias in version.aliases), None)

    def _found(self, condition: str) -> list[Version]:
        """The versions of this name that a search gives, the newest first."""
        model = self._model()
        return [] if model is None else _versions(self._client, model, condition)

    def _model(self) -> Any:
        """The registered model; None where missing."""
        return _unless_missing(self._client.get_registered_model, self._name)

    def _tags(self) -> dict[str, str]:
        model = self._model()
        return {} if model is None else dict(model.tags)

    @cached_property
    def _client(self) -> Any:
        return connect(self._uri)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        with asking(self._uri, f"{what} of the model {self._name}"):
            yield


def names(uri: str) -> list[str]:
    """The registered models, sorted.

    Raises:
        TrackingError: MLflow is away or refuses.
    """
    shorten_timeout()
    with asking(uri, "list the registered models"):
        return sorted(model.name for model in _pages(connect(uri).search_registered_models, None))


def logged_model(client: Any, run_id: str) -> Any:
    """The `mlflow.entities.LoggedModel` of a run; None where it has none. Raises whatever MLflow raises."""
    experiment_id = client.get_run(run_id).info.experiment_id
    return next(iter(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")), None)


def register_logged_model(
    client: Any, name: str, run_id: str, model: Any, tags: Mapping[str, str], description: str = ""
) -> int:
    """Makes a version of a logged model, or finds the one that the run has, and sets its tags. May be repeated.

    Args:
        client: an `mlflow.MlflowClient`.
        name: of the registered model, created where missing.
        run_id: of the run that made the logged model.
        model: an `mlflow.entities.LoggedModel`.
        tags: of the version.
        description: of the version, as Markdown. One that is there already stays.

    Returns:
        The version's number.

    Raises:
        Exception: whatever MLflow raises.
    """
    ensure_model(client, name)
    found = [v for v in _pages(client.search_model_versions, f"run_id = '{run_id}'") if v.name == name]
    if found:
        version = found[0]
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
        if description and not version.description:
            client.update_model_version(name, version.version, description)
    else:
        version = client.create_model_version(
            name, model.artifact_location, run_id, tags=dict(tags), description=description, model_id=model.model_id
        )
    # MLflow's own link from the logged model to the registered one.
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
    _describe(client, name)
    return int(version.version)


def ensure_model(client: Any, name: str) -> None:
    """Creates a registered model where it is missing. Raises whatever MLflow raises."""
    from mlflow.exceptions import MlflowException

    if _unless_missing(client.get_registered_model, name) is not None:
        return
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # Somebody else was faster.
            raise


def _versions(client: Any, model: Any, condition: str) -> list[Version]:
    """The versions of a registered model that a search gives, the newest first."""
    # A search leaves the aliases out.
    aliases: dict[int, list[str]] = {}
    for alias, number in model.aliases.items():
        aliases.setdefault(int(number), []).append(alias)
    found = [
        Version(
            number=int(entity.version),
            run_id=entity.run_id,
            created_at=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
            aliases=tuple(sorted(aliases.get(int(entity.version), []))),
            tags=dict(entity.tags),
        )
        for entity in _pages(client.search_model_versions, condition)
        if entity.name == model.name
    ]
    return sorted(found, key=lambda version: version.number, reverse=True)


def _role(version: Version) -> str | None:
    """What part a version plays; None for one of a run outside of the game of champions and challengers."""
    for alias in (CHAMPION, PREVIOUS):
        if alias in version.aliases:
            return alias
    role = version.tags.get(ROLE)
    return FORMER if role in (CHAMPION, PREVIOUS) else role


def _describe(client: Any, name: str) -> None:
    """Writes what a registered model is into its description, unless somebody has written one."""
    model = _unless_missing(client.get_registered_model, name)
    if model is None or (model.description and not notes.is_ours(model.description)):
        return
    versions = _versions(client, model, f"name = '{name}'")
    line = [(alias, version) for alias in (CHAMPION, PREVIOUS) for version in versions if alias in version.aliases]
    text = notes.registered_model(name, [(alias, version.number, version.tags) for alias, version in line])
    if text != model.description:
        client.update_registered_model(name, text)


def _unless_missing(ask: Callable[..., Any], *arguments: Any) -> Any:
    """What MLflow answers; None where it has no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _pages(search: Any, condition: str | None) -> Iterator[Any]:
    """All that a search finds, page by page."""
    page = search(condition)
    yield from page
    while page.token:
        page = search(condition, page_token=page.token)
        yield from page


# --------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Row:
    """A version as `graft models` shows it.

    Attributes:
        number: the version.
        aliases: champion and previous among them.
        created_at: UTC.
        data_digest: the first 8 hexadecimal letters of the digest of the pictures; None where nobody said it.
        accuracy, accuracy_low, accuracy_high: on the test split, 0 to 1, with its 95 % interval; None where the run
            is gone or did not get so far.
        promoted_at, reason, decided_by: UTC, ISO 8601, why, and by whom it was promoted; None where it never was.
        refused: why the gate refused it; None where it did not.
        rolled_back: when and why it was gone back from; None where it was not.
        export_version: its folder where servers read; None where it was never there.
        export_dir, run_dir: of the published model, and of the run.
        run_id: MLflow's id of the run.
    """

    number: int
    aliases: tuple[str, ...]
    created_at: datetime
    data_digest: str | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    promoted_at: str | None
    reason: str | None
    decided_by: str | None
    refused: str | None
    rolled_back: str | None
    export_version: str | None
    export_dir: str | None
    run_dir: str | None
    run_id: str


def table(registry: Registry) -> list[Row]:
    """What `graft models NAME` shows, the newest version first.

    Raises:
        TrackingError: MLflow is away or refuses.
    """
    return [_row(version, registry.metrics(version)) for version in registry.versions()]


def _row(version: Version, metrics: Mapping[str, float]) -> Row:
    tags = version.tags
    digest = tags.get("graft.data_digest")
    return Row(
        number=version.number,
        aliases=version.aliases,
        created_at=version.created_at,
        data_digest=digest and digest[:8],
        accuracy=metrics.get("test/accuracy"),
        accuracy_low=metrics.get("test/accuracy_low"),
        accuracy_high=metrics.get("test/accuracy_high"),
        promoted_at=tags.get("graft.promoted_at"),
        reason=tags.get("graft.reason"),
        decided_by=tags.get("graft.decided_by"),
        refused=tags.get("graft.gate_reason") if tags.get("graft.gate") == "refused" else None,
        rolled_back=tags.get("graft.rolled_back"),
        export_version=tags.get("graft.export_version"),
        export_dir=tags.get("graft.export_dir"),
        run_dir=tags.get("graft.run_dir"),
        run_id=version.run_id,
    )
