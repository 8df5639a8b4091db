"""One retraining, from new pictures to a promoted model or a reason why not: the whole job on one screen.

    look      what has changed since the champion was trained, and is it enough?
    train     a challenger; a run like any other, on a frozen test set and not published
    judge     champion and challenger on that test set: the gate
    promote   register, alias, publish, ask the endpoint
    retain    remove what is old

A job that is killed leaves `<output_dir>/<name>/retrain.json`, and the next one goes on from there: with the training's
last checkpoint, with the judgement, or with the promotion.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline import contents, gate_page, notes, promotion, publish, testset
from pipeline.activations import opened
from pipeline.artifacts import LEARNED_FROM, LOG, MODEL, Record, RunRecord, card, new_folder, read_manifest
from pipeline.config import RunConfig, seconds
from pipeline.console import Console
from pipeline.contents import Contents
from pipeline.delivery import deliver, sync
from pipeline.errors import ConfigError, DataError, GraftError, TrackingError
from pipeline.gate import Decision
from pipeline.journal import is_delivered, redirect
from pipeline.judge import Verdict, judge
from pipeline.locks import Held, Lock, locked
from pipeline.mlflow_client import resolve_uri
from pipeline.promotion import alone
from pipeline.publish import Champion
from pipeline.quiet import import_tensorflow
from pipeline.registry import CHALLENGER, ROLE, Registry
from pipeline.retention import retain
from pipeline.smoke import SmokeTestError, read_token, smoke_test
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.testset import FrozenTest
from pipeline.tracking import Tracker

Ending = Literal["nothing to do", "refused", "promoted", "failed"]


class Outcome(Record):
    """How a job ended.

    Attributes:
        outcome: one of four.
        reason: why, in a sentence.
        name: of the model.
        champion: its version in the registry, after the job; None where there is none.
        served: the champion's folder.
        run_dir: the challenger's run; None where none was trained.
        gate: the page with the gate's decision.
        gain, gain_low, gain_high: the challenger's accuracy less the champion's, with its 95 % interval.
    """

    outcome: Ending
    reason: str
    name: str
    champion: int | None = None
    served: str | None = None
    run_dir: str | None = None
    gate: str | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


class Job(Record):
    """`retrain.json`: a job that has not ended.

    Attributes:
        step: what is to be done next.
        run_dir: the challenger's.
        config: digest of the config.
        data: digest of the data's contents.
        champion: the registered version that is challenged; None without one.
        started_at: UTC, ISO 8601.
        why: there was reason to train.
    """

    step: Literal["train", "judge", "promote"]
    run_dir: str
    config: str
    data: str
    champion: int | None
    started_at: str
    why: str = ""

    @property
    def question(self) -> tuple[str, str, int | None]:
        """What the job answers: whether this config and data make a better model than this champion."""
        return self.config, self.data, self.champion


class Refused(Record):
    """`refused.json`: the last challenger that was refused; the same would be refused again."""

    job: Job
    reason: str


@dataclass(frozen=True)
class _Work:
    """What all steps of a job share."""

    config: RunConfig
    registry: Registry
    lock: Lock
    console: Console

    @property
    def folder(self) -> Path:
        """Of the name's runs, and of the job's own files."""
        return Path(self.config.output_dir).resolve() / self.config.name

    @property
    def home(self) -> Path:
        """Where servers read."""
        return Path(self.config.export.dir).resolve() / self.config.name

    def ended(self, outcome: Ending, reason: str, run_dir: str | None = None) -> Outcome:
        """The job's outcome."""
        champion = publish.champion(self.home)
        page, decision = None, None
        if run_dir is not None and (Path(run_dir) / "gate.html").is_file():
            page = str(Path(run_dir) / "gate.html")
            decision = Verdict.read(Path(run_dir) / "gate.json").decision
        gain, (low, high) = None, (None, None)
        if decision is not None and decision.gain_interval is not None:
            gain, (low, high) = decision.gain, decision.gain_interval
        return Outcome(
            outcome=outcome, reason=reason, name=self.config.name,
            champion=_registered(champion), served=None if champion is None else str(self.home / str(champion.version)),
            run_dir=run_dir, gate=page, gain=gain, gain_low=low, gain_high=high,
        )  # fmt: skip


def retrain(config: RunConfig, console: Console) -> Outcome:
    """Does what there is to do, once.

    Raises:
        ConfigError: a mistake in the config. Whatever else goes wrong is an outcome.
    """
    uri = resolve_uri(config)
    try:
        with locked(config.name, uri, Path(config.output_dir).resolve(), console) as lock:
            work = _Work(config, Registry(uri, config.name), lock, console)
            try:
                return _retrain(work)
            except ConfigError:
                raise
            except GraftError as error:
                job = _unfinished(work)
                return work.ended("failed", str(error), None if job is None else job.run_dir)
            except OSError as error:
                where = error.filename or "the disk"
                return work.ended("failed", f"{where}: {error.strerror or error}. The next job goes on from here.")
    except Held as error:
        return Outcome(outcome="nothing to do", reason=str(error), name=config.name)


def _retrain(work: _Work) -> Outcome:
    _deliver_earlier(work)
    job = _unfinished(work)
    if job is not None and job.step != "train" and not (Path(job.run_dir) / MODEL / "manifest.json").is_file():
        work.console.warn(f"The challenger {job.run_dir} has gone, so the job begins anew.")
        _finish(work)
        job = None
    if job is None or job.step != "promote":
        source = open_source(work.config.data)
        present = contents.read(source, work.console)
        champion = publish.champion(work.home)
        question = _digest(work), present.digest, _registered(champion)
        if job is not None and job.question != question:
            _abandon(job, work)
            job = None
        if job is None:
            reason, enough = _look(work, present, champion, question)
            if not enough:
                return work.ended("nothing to do", reason)
            work.console.say(reason)
            job = Job(
                step="train", run_dir=str(new_folder(work.folder)), started_at=_now(),
                config=question[0], data=question[1], champion=question[2], why=reason,
            )  # fmt: skip
            _write(job, work)
        if job.step == "train":
            _train(job, work, champion, source.classes)
            job = _step(job, "judge", work)
        if _registered(publish.champion(work.home)) != job.champion:
            return _begin_anew(work)
        decision = _judge(job, work, champion, source)
        if not decision.promote:
            Refused(job=job, reason=decision.reason).write(work.folder / "refused.json")
            _finish(work)
            _retain(work)
            return work.ended("refused", decision.reason, job.run_dir)
        job = _step(job, "promote", work)
    return _promote(job, work)


# ---------------------------------------------------------------------------------------------------------------- look


def _look(
    work: _Work, present: Contents, champion: Champion | None, question: tuple[str, str, int | None]
) -> tuple[str, bool]:
    """Whether to train, and why or why not."""
    name, when = work.config.name, work.config.retrain.when
    with suppress(OSError, ValidationError):
        refused = Refused.read(work.folder / "refused.json")
        if refused.job.question == question:
            at = refused.job.started_at[:10]
            return f"the same data and config gave a challenger on {at} that was refused: {refused.reason}", False
    if champion is None:
        return f"{name} has no champion", True
    for rejected in champion.rejected:
        with suppress(OSError, ValidationError):
            if Job.read(work.folder / rejected.run / "job.json").question[:2] == question[:2]:
                made = f"the same data and config made version {rejected.registered}, which somebody went back from"
                return f"{made}: {rejected.reason}", False
    model = publish.folder_of(work.home, champion.version)
    if model is None:
        raise DataError(
            f"The champion, version {champion.registered}, is not in {work.home} any more, so no challenger can be "
            "compared with it. Put its folder back, or promote another version: graft promote NAME VERSION."
        )
    if not (model / LEARNED_FROM).is_file():
        return f"nobody knows what version {champion.registered} was trained on", True
    change = present.since(contents.read_list(model / LEARNED_FROM))
    since = f"{change} since version {champion.registered}"
    if when.changed and change:
        return since, True
    if when.new_images is not None and change.added >= when.new_images:
        return f"{since}, at least {when.new_images} of them new", True
    manifest = read_manifest(model)
    if when.older_than is not None:
        age = datetime.now(UTC) - datetime.fromisoformat(manifest.created_at)
        if age.total_seconds() >= seconds(when.older_than):
            return f"version {champion.registered} is {age.days} days old, more than {when.older_than}", True
    if when.drift is not None:
        from pipeline.drift import watch

        try:
            drift = watch(model, Path(when.drift), work.config.seed)
        except GraftError as error:  # No reason for a job to fail: there is nothing to learn from it tonight.
            work.console.warn(str(error))
            return since, False
        if drift.drifted:
            return drift.sentence, True
        since += f"; {drift.sentence}"
    return since, False


def _digest(work: _Work) -> str:
    """Of all that decides a challenger and its judgement, besides the data: the test set too, but not where things are
    kept, or when to train."""
    config, retrain = work.config, work.config.retrain
    frozen = testset.newest(testset.folder_of(config.output_dir, config.name))
    test_set = 1 if frozen is None else frozen.version  # The first one is made by the job itself.
    elsewhere = {"tracking", "export", "output_dir", "checkpoint", "cache", "retrain"}
    decides = config.model_dump(mode="json", by_alias=True, exclude=elsewhere)
    return hashlib.sha256(repr((decides, retrain.start, retrain.near_duplicates, test_set)).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------- steps


def _train(job: Job, work: _Work, champion: Champion | None, classes: tuple[str, ...]) -> None:
    """Trains the challenger, or goes on where a killed job stopped."""
    run_dir = Path(job.run_dir)
    with suppress(OSError, ValidationError):
        if RunRecord.read(run_dir / "run.json").status == "finished":
            return
    import_tensorflow()
    from pipeline.run import Challenge, run

    config, head = work.config, None
    if config.retrain.start == "champion" and champion is not None:
        start = work.folder / champion.run
        backbone = config.backbone.model_copy(update={"weights": f"run:{start.name}"})
        before = read_manifest(start / MODEL)
        if (before.config["head"], tuple(before.classes)) == (config.head.model_dump(mode="json"), classes):
            head = start / "head.weights.h5"
        config = config.model_copy(update={"backbone": backbone})
    frozen = testset.newest(testset.folder_of(config.output_dir, config.name))
    run(config, work.console, run_dir, Challenge(frozen, head), title=f"challenger: {job.why}")


def _judge(job: Job, work: _Work, champion: Champion | None, source: Source) -> Decision:
    """Asks the gate, once, and keeps its answer beside the run and in MLflow."""
    run_dir = Path(job.run_dir)
    frozen = FrozenTest.read(run_dir / "test-set.json")
    folder = testset.folder_of(work.config.output_dir, work.config.name)
    if testset.newest(folder) is None:
        testset.freeze(folder, frozen)
    import_tensorflow()
    against = None
    if champion is not None:
        model = publish.folder_of(work.home, champion.version)
        assert model is not None, "looked for before the training"
        against = f"version {champion.registered}", model
    config = work.config
    with work.console.also_to(run_dir / LOG):
        result = judge(run_dir, against, source, len(frozen.pictures), config.gate, config.seed, work.console)
        work.console.log(f"the gate: {result.verdict.decision.reason}")
    job.write(run_dir / "job.json")
    result.verdict.write(run_dir / "gate.json")
    facts = _facts(result.verdict, frozen, job)
    gate_page.write(run_dir / "gate.html", result.verdict.decision, result.flips, result.pictures, facts)
    _tell_mlflow(run_dir, result.verdict, work)
    if result.verdict.missing:
        work.console.warn(f"{result.verdict.missing} pictures of the frozen test set are no longer in the data")
    return result.verdict.decision


def _facts(verdict: Verdict, frozen: FrozenTest, job: Job) -> dict[str, str]:
    """What the page says besides the decision."""
    missing = f", {verdict.missing} of them no longer in the data" if verdict.missing else ""
    missing += f", {verdict.repeated} that show the same as another left out" if verdict.repeated else ""
    facts = {
        "test set": f"version {frozen.version} of {frozen.frozen_at[:10]}, {len(frozen.pictures)} pictures{missing}",
        "challenger": job.run_dir,
    }
    return facts | ({} if verdict.leak is None else {"leak": verdict.leak.sentence})


def _tell_mlflow(run_dir: Path, verdict: Verdict, work: _Work) -> None:
    """Adds the gate's decision to the challenger's run."""
    decision, config = verdict.decision, work.config
    tracker = Tracker(run_dir, resolve_uri(config), config.experiment, run_dir.name, work.console)
    said = {"graft.gate": "passed" if decision.promote else "refused", "graft.gate_reason": decision.reason}
    tracker.tags(said)
    tracker.metrics({f"gate/{name}": value for name, value in decision.figures.items()}, step=0)
    for name in ("gate.json", "gate.html", LOG):
        tracker.artifact(run_dir / name)
    # One that is refused is a version too: somebody may want it all the same.
    data = read_manifest(run_dir / MODEL).data_digest
    tags = said | {ROLE: CHALLENGER, "graft.run_dir": str(run_dir), "graft.data_digest": data[:12]}
    sentence = f"{'Passed' if decision.promote else 'Refused by'} the gate: {decision.reason}"
    tracker.version(config.name, tags, notes.version(sentence, card(run_dir)))
    tracker.finish("FINISHED")


def _promote(job: Job, work: _Work) -> Outcome:
    """Makes the challenger the champion, and takes it back where the endpoint does not serve it well."""
    run_dir, smoke = Path(job.run_dir), work.config.retrain.smoke_test
    verdict = Verdict.read(run_dir / "gate.json")
    reason = verdict.decision.reason
    token = None if smoke is None else read_token(smoke)  # Before anything is served.
    try:
        redirect(run_dir, resolve_uri(work.config))
        delivery = deliver(run_dir, work.console)
        work.lock.check()
        with alone(work.home):
            champion = publish.champion(work.home)
            is_live = champion is not None and champion.run == run_dir.name
            overtaken = (_registered(champion) != job.champion and not is_live) or _went_back(champion, run_dir)
            if not overtaken:
                version = work.registry.register(delivery.run_id, {})
                champion = promotion.install(work.registry, work.home, version, run_dir / MODEL, reason, "gate")
    except TrackingError as error:
        return work.ended("failed", f"will complete: the challenger is better ({reason}), but {error}", job.run_dir)
    if overtaken:
        return _begin_anew(work)
    assert champion is not None
    if smoke is not None:
        try:
            smoke_test(smoke, token, work.config.name, champion.version, verdict.known)
        except SmokeTestError as error:
            return _take_back(job, work, champion, error)
    _finish(work)
    _retain(work)
    return work.ended("promoted", reason, job.run_dir)


def _begin_anew(work: _Work) -> Outcome:
    """Somebody has promoted, or gone back, during the job: its challenger was made for another champion."""
    work.console.say("the champion has changed since the job began: it begins anew")
    _finish(work)
    return _retrain(work)


def _take_back(job: Job, work: _Work, champion: Champion, error: SmokeTestError) -> Outcome:
    """Undoes a promotion. Where the endpoint was away the next job tries again; what answers wrongly stays refused."""
    reason = f"promoted, and taken back: {error}"
    with alone(work.home):
        promotion.undo(work.home, champion)
        if error.answered:
            Refused(job=job, reason=reason).write(work.folder / "refused.json")
            _finish(work)
        try:
            work.registry.log(reason)
            promotion.agree(work.registry, work.home, work.console)
        except TrackingError as away:
            work.console.warn(f"The next job brings MLflow's aliases in line with what is served. {away}")
    return work.ended("failed", reason if error.answered else f"{reason} The next job tries again.", job.run_dir)


def _retain(work: _Work) -> None:
    """Removes what is old. A job that has done its work does not fail for that."""
    rules = work.config.retrain.retention
    try:
        retain(rules, work.registry, work.home, work.folder, work.console)
        with opened(work.config.cache, Path(work.config.cache_dir), work.console) as store:
            if store is not None and rules.activations is not None:
                store.prune(unused_since=datetime.now(UTC) - timedelta(seconds=seconds(rules.activations)))
    except (GraftError, OSError) as error:
        work.console.warn(f"What is old was not removed: {error}")


def _deliver_earlier(work: _Work) -> None:
    """Brings to MLflow what earlier runs could not, and its aliases in line with what is served."""
    publish.clean(work.home)
    job = _unfinished(work)
    try:
        if job is None or job.step != "promote":  # Else the promotion comes first.
            with alone(work.home):
                promotion.agree(work.registry, work.home, work.console)
    except TrackingError as error:
        work.console.warn(f"The job goes on without MLflow. {error}")
    away = set()
    for path in sorted(work.folder.glob("*/run.json")):
        with suppress(OSError, ValidationError):
            store = RunRecord.read(path).tracking_uri
            if store not in away and not is_delivered(path.parent):
                try:
                    redirect(path.parent, resolve_uri(work.config))
                    sync(path.parent, work.console)
                except TrackingError as error:
                    work.console.warn(str(error))
                    away.add(store)


# ----------------------------------------------------------------------------------------------------------- job files


def _unfinished(work: _Work) -> Job | None:
    with suppress(OSError, ValidationError):
        return Job.read(work.folder / "retrain.json")
    return None


def _write(job: Job, work: _Work) -> None:
    job.write(work.folder / "retrain.json")


def _step(job: Job, step: Literal["judge", "promote"], work: _Work) -> Job:
    job = job.model_copy(update={"step": step})
    _write(job, work)
    return job


def _finish(work: _Work) -> None:
    (work.folder / "retrain.json").unlink(missing_ok=True)


def _went_back(champion: Champion | None, run_dir: Path) -> bool:
    """Whether somebody has gone back from what a run made."""
    return champion is not None and any(rejected.run == run_dir.name for rejected in champion.rejected)


def _registered(champion: Champion | None) -> int | None:
    return None if champion is None else champion.registered


def _abandon(job: Job, work: _Work) -> None:
    """Ends a job whose data, config or champion are no longer what they were: its training cannot be gone on with."""
    run_dir = Path(job.run_dir)
    why = "the data, the config or the champion changed before the job could go on"
    work.console.say(f"{run_dir} is given up: {why}")
    with suppress(OSError, ValidationError):
        record = RunRecord.read(run_dir / "run.json")
        if record.status != "finished":
            record.model_copy(update={"status": "killed", "error": why}).write(run_dir / "run.json")
            uri, experiment = resolve_uri(work.config), work.config.experiment
            Tracker(run_dir, uri, experiment, run_dir.name, work.console).finish("KILLED")
    _finish(work)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
