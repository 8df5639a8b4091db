"""Which versions of which models are served: noticed, loaded beside the old one, checked, swapped.

One thread looks for changes and loads; requests borrow a version and give it back; a version that is no longer wanted
is closed when the last request that uses it has.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from time import monotonic

from pipeline.errors import ConfigError, ExportError
from pipeline.pixels import PixelSpec
from serving import export
from serving.batching import CLOSE_SECONDS, Batches
from serving.engines import WARMUP_SECONDS, Engine, LoadError, Model, NotYet, difference
from serving.errors import BadRequest, NotFound, Refusal, Unavailable
from serving.export import Export
from serving.logs import log
from serving.metrics import Metrics
from serving.models_config import Latest, Specific, Wanted, read, versions
from serving.samples import Sampler, Sampling
from serving.settings import Settings

RETRY_SECONDS = 60.0
"""Between attempts to load a version whose files have not changed, as TensorFlow Serving does."""


class State(StrEnum):
    """As TensorFlow Serving calls them."""

    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass(frozen=True)
class Status:
    """What is to be known of one version.

    Attributes:
        state: END is a version that could not be loaded; `error` says why.
        labels: that point to it.
    """

    version: int
    state: State
    error: str = ""
    labels: tuple[str, ...] = ()


@dataclass(eq=False)
class Served:
    """A version that answers.

    Attributes:
        spec: how its pictures are decoded, with the server's limit on megapixels.
        users: requests that borrow it.
    """

    name: str
    version: int
    export: Export
    spec: PixelSpec
    model: Model
    batches: Batches
    users: int = 0
    unused: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Kept:
    """What is known of one model. Read and changed under the lock."""

    served: dict[int, Served] = field(default_factory=dict)
    states: dict[int, tuple[State, str]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class _Failure:
    files: tuple[tuple[str, int, int], ...]
    at: float


class Versions:
    """Every version of every model that is served.

    Args:
        settings: where the models are.
        engine: loads them.
        metrics: gets the states.
        clock: seconds, never going back.
        sampler: gets a sample of the pictures, if there is one.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        metrics: Metrics,
        clock: Callable[[], float] = monotonic,
        sampler: Sampler | None = None,
    ) -> None:
        self._settings, self._engine, self._metrics, self._clock = settings, engine, metrics, clock
        self._sampler = sampler
        self._models: dict[str, _Kept] = {}
        self._failures: dict[tuple[str, int], _Failure] = {}
        self._complaint = ""
        self._looked = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._closing: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)

    def start(self) -> None:
        """Begins to look, at once and then every `poll_seconds`."""
        self._thread.start()

    def close(self) -> None:
        """Closes every version, each when its last request is answered."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)  # It may be loading.
        with self._lock:
            served = [version for kept in self._models.values() for version in kept.served.values()]
        for version in served:
            self._retire(version)
        for thread in self._closing:
            thread.join(CLOSE_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether the first look is over and a model is loaded and warm."""
        with self._lock:
            return self._looked and any(kept.served for kept in self._models.values())

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._models)

    def status(self, name: str) -> list[Status]:
        """Each version of a model, newest first. Raises NotFound."""
        with self._lock:
            if name not in self._models:
                raise NotFound(f"Could not find any versions of model {name}")
            kept = self._models[name]
            return [
                Status(number, *kept.states[number], tuple(sorted(k for k, v in kept.labels.items() if v == number)))
                for number in sorted(kept.states, reverse=True)
            ]

    @contextlib.contextmanager
    def borrow(self, name: str, version: int | None = None, label: str | None = None) -> Iterator[Served]:
        """A version to answer with: the one asked for, or the newest. It stays open meanwhile.

        Raises:
            NotFound: there is no such model or version.
            BadRequest: there is no such label.
            Unavailable: no version of the model is loaded.
        """
        with self._lock:
            served = self._find(name, version, label)
            served.users += 1
        try:
            yield served
        finally:
            with self._lock:
                served.users -= 1
                if served.users == 0 and self._models.get(name, _Kept()).served.get(served.version) is not served:
                    served.unused.set()

    def look(self) -> None:
        """Compares what is on disk with what is served, once, and loads and closes what differs."""
        try:
            wanted = self._wanted()
        except (ConfigError, OSError) as error:
            self._complain("the models cannot be read; those that are served stay", str(error))
            return
        if wanted:
            self._complaint = ""
        else:
            self._complain("there is no model yet", f"{self._settings.export} holds no NAME/VERSION/")
        for model in wanted:
            self._update(model)
        gone = set(self.names()) - {model.name for model in wanted}
        for name in gone:
            with self._lock:
                served = list(self._models[name].served.values())
                if not served:
                    self._forget(name)
            for version in served:
                self._retire(version)
        self._looked = True

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # The next look may succeed; without this thread no version would ever change again.
                log.exception("looking for versions failed")
            self._stop.wait(self._settings.poll_seconds)

    def _wanted(self) -> list[Wanted]:
        if self._settings.models_config is not None:
            return read(self._settings.models_config)
        return [
            Wanted(folder.name, folder, Latest(1), {})
            for folder in sorted(self._settings.export.iterdir())
            # One that has lost every version keeps the last one it had.
            if folder.is_dir() and not folder.name.startswith(".") and (_numbers(folder) or folder.name in self._models)
        ]

    def _complain(self, message: str, reason: str) -> None:
        if reason != self._complaint:
            log.warning(message, extra={"fields": {"error": reason}})
        self._complaint = reason

    def _update(self, model: Wanted) -> None:
        with self._lock:
            kept = self._models.setdefault(model.name, _Kept())
        for served in [served for served in kept.served.values() if served.model.lost]:
            self._retire(served)
        available = _numbers(model.base_path)
        wanted = versions(model.policy, available)
        self._note(model, kept, wanted, available)
        for number in sorted(wanted - kept.served.keys(), reverse=True):
            self._try(model, kept, number)
        # A start must not leave a model unserved because its newest version is broken.
        if isinstance(model.policy, Latest) and {kept.states.get(n, (None,))[0] for n in wanted} == {State.END}:
            for number in sorted(available - wanted, reverse=True):
                if not kept.served:
                    self._try(model, kept, number)
        with self._lock:
            for number in kept.states.keys() - wanted - kept.served.keys():
                if kept.states[number][0] is not State.UNLOADING:  # That ends when it is closed.
                    self._set(model.name, kept, number, None)
            # A version leaves when another is there in its place, never before.
            staying = kept.served.keys() & wanted or kept.served.keys()
            leaving = [kept.served[number] for number in kept.served.keys() - staying]
            # A label moves when the version it moves to is there.
            kept.labels = {
                label: number if number in staying else kept.labels[label]
                for label, number in model.labels.items()
                if number in staying or kept.labels.get(label) in staying
            }
        for served in leaving:
            self._retire(served)

    def _note(self, model: Wanted, kept: _Kept, wanted: set[int], available: set[int]) -> None:
        """Says once what models.config names and is not there; for who asks, why nothing is loaded."""
        missing = []
        if not available:
            missing.append(f"{model.base_path} holds no version, a folder whose name is a number")
        if isinstance(model.policy, Specific) and (absent := model.policy.versions - available):
            missing.append(f"there is no version {', '.join(map(str, sorted(absent)))} in {model.base_path}")
        for label, number in model.labels.items():
            if number not in wanted:
                missing.append(f"the label {label} is for version {number}, which is not served")
        if (text := "; ".join(missing)) != kept.missing:
            kept.missing = text
            if text:
                log.warning("model incomplete", extra={"fields": {"model": model.name, "reason": text}})

    def _try(self, model: Wanted, kept: _Kept, number: int) -> None:
        """Loads a version, if that is worth an attempt."""
        if self._stop.is_set():
            return
        path = model.base_path / str(number)
        files = _files(path)
        failed = self._failures.get((model.name, number))
        if failed and failed.files == files and self._clock() - failed.at < RETRY_SECONDS:
            return
        with self._lock:
            error = kept.states.get(number, (State.LOADING, ""))[1]
            self._set(model.name, kept, number, State.LOADING, error)
        fields: dict[str, object] = {"model": model.name, "version": number, "engine": self._engine.name}
        started = self._clock()
        try:
            served = self._loaded(model.name, path)
        except NotYet as reason:
            if str(reason) != error:
                log.info("version awaited", extra={"fields": {**fields, "reason": str(reason)}})
            with self._lock:
                self._set(model.name, kept, number, State.LOADING, str(reason))
        except Exception as failure:
            reason_given = str(failure) or type(failure).__name__
            if reason_given != error:
                foreseen = isinstance(failure, LoadError | ExportError)
                log.error(
                    "version not served",
                    exc_info=None if foreseen else failure,
                    extra={"fields": {**fields, "error": reason_given}},
                )
            self._failures[model.name, number] = _Failure(files, self._clock())
            self._metrics.loads.labels(model.name, "failed").inc()
            with self._lock:
                self._set(model.name, kept, number, State.END, reason_given)
        else:
            self._failures.pop((model.name, number), None)
            self._metrics.loads.labels(model.name, "loaded").inc()
            with self._lock:
                kept.served[number] = served
                self._set(model.name, kept, number, State.AVAILABLE)
            seconds = round(self._clock() - started, 3)
            log.info("version served", extra={"fields": {**fields, "seconds": seconds}})

    def _loaded(self, name: str, path: Path) -> Served:
        found = export.read(path, name)
        model = self._engine.load(found)
        try:
            _check(model, found, self._engine, self._settings.max_batch)
            sampling = self._sampling(found, model)
        except BaseException:
            model.close()
            raise
        batches = Batches(
            name,
            model,
            self._engine.at_once,
            self._settings.max_batch,
            self._settings.max_wait_ms / 1000,
            self._metrics,
            sampling,
        )
        spec = replace(found.manifest.pixels, max_megapixels=self._settings.max_megapixels)
        return Served(name, found.version, found, spec, model, batches)

    def _sampling(self, found: Export, model: Model) -> Sampling | None:
        """For pictures of this version, if they are to be sampled and can be."""
        if self._sampler is None:
            return None
        reason = "" if model.embeds else "it was exported before graft kept embeddings"
        if model.embeds:
            try:
                pixels, _ = found.warmup()
                model.embedded(pixels[:1], WARMUP_SECONDS)  # The first takes longer, and nobody waits for this one.
            except Exception as error:  # Whatever an engine may raise: the version is served, without samples.
                reason = str(error) or type(error).__name__
        if reason:
            fields = {"model": found.name, "version": found.version, "reason": reason}
            log.warning("version served without samples", extra={"fields": fields})
            return None
        return Sampling(self._sampler, found.name, found.version, found.manifest.classes)

    def _find(self, name: str, version: int | None, label: str | None) -> Served:
        kept = self._models.get(name)
        if label is not None:
            if kept is None or label not in kept.labels:
                raise BadRequest(f"Unrecognized servable version label: {label}")
            version = kept.labels[label]
        if version is not None and (kept is None or version not in kept.served):
            raise NotFound(f"Servable not found for request: Specific({name}, {version})")
        if kept is None:
            raise NotFound(f"Servable not found for request: Latest({name})")
        if not kept.served:
            why = kept.missing or f"GET /v1/models/{name} says why"
            raise Unavailable(f"No version of the model {name} is loaded: {why}.")
        return kept.served[max(kept.served) if version is None else version]

    def _retire(self, served: Served) -> None:
        """Takes a version out of use; closes it, in a thread of its own, when the last request has given it back."""
        with self._lock:
            kept = self._models[served.name]
            del kept.served[served.version]
            self._set(served.name, kept, served.version, State.UNLOADING)
            if served.users == 0:
                served.unused.set()

        def close() -> None:
            served.unused.wait()
            served.batches.close()
            served.model.close()
            with self._lock:
                # It may be wanted, and loaded, again.
                if kept.states.get(served.version, (None,))[0] is State.UNLOADING:
                    self._set(served.name, kept, served.version, None)
            log.info("version closed", extra={"fields": {"model": served.name, "version": served.version}})

        self._closing = [thread for thread in self._closing if thread.is_alive()]
        self._closing.append(threading.Thread(target=close, name="closing", daemon=True))
        self._closing[-1].start()

    def _set(self, name: str, kept: _Kept, number: int, state: State | None, error: str = "") -> None:
        """Changes a version's state under the lock; None forgets it."""
        if number in kept.states:
            with contextlib.suppress(KeyError):
                self._metrics.version.remove(name, str(number), kept.states[number][0].value)
        if state is None:
            kept.states.pop(number, None)
        else:
            kept.states[number] = state, error
            self._metrics.version.labels(name, str(number), state.value).set(1)

    def _forget(self, name: str) -> None:
        kept = self._models[name]
        for number in list(kept.states):
            if kept.states[number][0] is not State.UNLOADING:
                self._set(name, kept, number, None)
        if not kept.states:
            del self._models[name]


def check_folder(folder: Path) -> None:
    """Raises ConfigError where a folder cannot be one of models, with what was probably meant."""
    if not folder.is_dir():
        raise ConfigError(
            f"There is no folder {folder} to serve models from. Give the folder that graft run exports into: it holds "
            "NAME/VERSION/, and its name is the config's export_dir."
        )
    for path, parent in ((folder, folder.parent), (folder / "saved_model.pb", folder.parent.parent)):
        if (path.is_dir() and _numbers(path)) or path.is_file():
            raise ConfigError(
                f"{folder} is {'a version of a' if path.is_file() else 'one'} model, not a folder of models. Give "
                f"{parent}: every model below it is served."
            )


def _numbers(folder: Path) -> set[int]:
    """The versions below a model's folder."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return set()
    return {int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name}


def _files(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a folder is still being copied, or was mended."""
    found = []
    with contextlib.suppress(OSError):  # It is being removed.
        for file in sorted(path.rglob("*")):
            status = file.stat()
            found.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _check(model: Model, found: Export, engine: Engine, max_batch: int) -> None:
    """Compares a loaded model's answers with those of the SavedModel at export. It is warm afterwards.

    Raises:
        LoadError: they differ by more than rounding explains.
        NotYet: what computes does not answer.
    """
    try:
        distance = difference(model, found, max_batch)
    except Refusal as refusal:
        raise NotYet(f"its warm-up was not answered: {refusal}") from refusal
    if not distance <= engine.tolerance:  # NaN is not.
        raise LoadError(
            f"{engine.name} does not agree with the SavedModel on the warm-up pictures of {found.path}: a probability "
            f"differs by {distance:.2g}, allowed is {engine.tolerance:g}. Export it again if its files may be damaged, "
            "or serve it with --engine tensorflow."
        )
