"""`graft schedule`: one machine's nightly job, for where there is no cron, systemd or Kubernetes.

APScheduler says when: its CronTrigger, told in cron's words. The waiting is done here. APScheduler's own scheduler
drops a run that comes due while the last one is still at work, which is caught up on here; keeps a record of what it
missed while it was down only in a database; and sleeps by a clock that stands still while the machine is suspended.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from pydantic import AwareDatetime

from pipeline.artifacts import Record, write_atomically
from pipeline.config_file import load
from pipeline.console import Console
from pipeline.errors import ConfigError

Times = Callable[[datetime], datetime]
"""From a moment to the first scheduled time after it. Both have a time zone; the result's is the one it is shown in."""

POLL_SECONDS = 0.2
"""How often signals and the clock are looked at."""

_WRONG_CLOCK = timedelta(days=1)
"""A last start this far in the future was made while the clock was wrong. One that takes local time for UTC is up to 14
hours off."""


class State(Record):
    """`schedule.json`: what must be known after a restart.

    Attributes:
        last_start: of the last job that ended, in UTC; before there is one, of the schedule itself. A scheduled time
            after it was missed. A job that was stopped or killed with the scheduler has not ended: it is caught up on.
    """

    last_start: AwareDatetime


def schedule(
    config_path: Path, overrides: list[str], cron: str, jitter_seconds: int, timezone: str | None, console: Console
) -> None:
    """Runs `graft retrain` at each of the scheduled times, until SIGTERM or SIGINT.

    Each job is a process of its own: it reads the config anew, and its memory goes with it.

    Args:
        config_path: the config, read once here, for its mistakes and for where the state is kept.
        overrides: as for `config_file.load`, handed to each job.
        cron: five fields: minute, hour, day of month, month, day of week.
        jitter_seconds: each job starts up to so many seconds late, at random.
        timezone: the expression's, e.g. Europe/Berlin; None is the machine's.

    Raises:
        ConfigError: a mistake in the config, the expression or the time zone.
        KeyboardInterrupt: it was stopped by SIGINT.
    """
    config = load(config_path, overrides)
    times = cron_times(cron, timezone)
    # -P: a folder called pipeline where graft is run is not this package.
    command = [sys.executable, "-P", "-m", "pipeline", "retrain", str(config_path), "--json"]
    command += ["--quiet"] if console.quiet else []
    command += [word for override in overrides for word in ("--set", override)]
    state_file = Path(config.output_dir) / config.name / "schedule.json"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    repeat(command, times, jitter_seconds, state_file, console)


def repeat(
    command: list[str],
    times: Times,
    jitter_seconds: int,
    state_file: Path,
    console: Console,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Runs a command at each of the scheduled times, one at a time, until SIGTERM or SIGINT; main thread only.

    Times that passed while no scheduler ran, the machine slept or the last job was at work are made up for by one job.
    A clock that is set back by less than a day repeats no scheduled time. The first signal is handed on to the job as
    SIGTERM and waited for; a second one kills the job with all it started.

    Args:
        command: ends its standard output, which goes to this process's, with one line of JSON: {"outcome": ...,
            "reason": ..., ...}.
        times: the timetable.
        jitter_seconds: each job starts up to so many seconds after its time.
        state_file: where the last start is kept. Its folder is there.
        now: the clock, in UTC.

    Raises:
        KeyboardInterrupt: the first signal was SIGINT. The job has ended.
        OSError: the state cannot be read or first written.
    """
    last = _last_start(state_file, console)
    if last is None:
        last = now()
        _keep(state_file, last)
    to_tell = 3
    with _signals() as asked:
        while not asked:
            moment = now()
            if last - moment >= _WRONG_CLOCK:
                console.warn(f"The clock was set back by days, from {last:%Y-%m-%d %H:%M} UTC: counting from now on.")
                last, to_tell = moment, 3
            due = times(last)
            if to_tell and due > moment:
                _tell(times, last, to_tell, jitter_seconds, console)
                to_tell = 0
            begin = due + timedelta(seconds=random.uniform(0, jitter_seconds))
            while not asked and moment < begin and last - moment < _WRONG_CLOCK:
                time.sleep(POLL_SECONDS)
                moment = now()
            if asked or moment < begin:
                continue
            late = moment - begin > timedelta(minutes=1)
            console.say(f"{_shown(due)} was missed: caught up now" if late else f"{_shown(due)}: graft retrain")
            clock = time.monotonic()
            code, output = _run(command, asked, console)
            print(output, end="", flush=True)
            took = _duration(time.monotonic() - clock)
            if asked and code:
                how = "killed" if code == -signal.SIGKILL else "stopped"
                console.say(f"{how} after {took}: the next start continues it")
                break
            last, to_tell = moment, to_tell or 1
            try:
                _keep(state_file, last)
            except OSError as error:  # A full disk is the job's to fail on. Here it costs a catching up, at worst.
                console.warn(f"{state_file}: {error.strerror}. After a restart the job may run once more.")
            (console.warn if code else console.say)(f"{_outcome(code, output)} ({took})")
    if asked[0] == signal.SIGINT:
        raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------------- the timetable

_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_VALUE = "[0-9]{1,2}|[a-z]{3}"
_ITEM = re.compile(rf"(\*|(?P<first>{_VALUE})-(?P<last>{_VALUE}))(/(?P<step>[0-9]{{1,2}}))?|(?P<only>{_VALUE})")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def cron_times(cron: str, timezone: str | None) -> Times:
    """The timetable of a cron expression, read as cron reads it.

    Sunday is 0 or 7. Where both the day of month and the day of week are restricted, either one is enough. When clocks
    go back, a time that is shown twice is used once.

    Args:
        cron: five fields of values, ranges, lists and steps, with names of months and weekdays.
        timezone: IANA name; None is the machine's.

    Raises:
        ConfigError: a mistake in either, or an expression that never comes true.
    """
    fields = cron.lower().split()
    try:
        if len(fields) != len(_FIELDS):
            raise ValueError(f"{len(fields)} fields")
        for name, field in zip(_FIELDS, fields, strict=True):
            for item in field.split(","):
                if not _ITEM.fullmatch(item):
                    raise ValueError(f"{item!r} as {name}")
        minute, hour, day, month, weekday = fields
        days = [(day, _weekdays(weekday))]
        if not day.startswith("*") and not weekday.startswith("*"):
            days = [(day, "*"), ("*", _weekdays(weekday))]
        zone = _zone(timezone)
        triggers = [
            CronTrigger(minute=minute, hour=hour, day=day, month=month, day_of_week=weekday, timezone=zone)
            for day, weekday in days
        ]
        trigger: BaseTrigger = triggers[0] if len(triggers) == 1 else OrTrigger(triggers)
        if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError("a day that never comes")
    except ValueError as error:
        raise ConfigError(
            f"--cron takes five fields: {', '.join(_FIELDS)}. Each is *, a value, a range such as 1-5, a step such as "
            f'*/2, or a list of these; "0 3 * * *" is 03:00 every day, "30 2 * * mon-fri" 02:30 on working days. '
            f"Received: {cron!r}, with {str(error).strip('.')}."
        ) from None

    def after(moment: datetime) -> datetime:
        while True:
            # Through UTC and back: times that a clock skips, as 02:30 once a year, come as what it shows instead.
            found: datetime = trigger.get_next_fire_time(None, moment + timedelta(microseconds=1)).astimezone(UTC)
            assert found > moment
            moment, local = found, found.astimezone(zone)
            if not local.fold:
                return local

    return after


def _weekdays(field: str) -> str:
    """A cron field in APScheduler's words. By names: APScheduler counts from Monday, cron from Sunday."""
    chosen: set[int] = set()
    for item in field.split(","):
        match = _ITEM.fullmatch(item)
        assert match is not None
        if match["only"]:
            first = last = _weekday(match["only"])
        else:
            first, last = (_weekday(match["first"]), _weekday(match["last"])) if match["first"] else (0, 6)
            last = 7 if last == 0 < first else last  # fri-sun
        step = int(match["step"] or 1)
        if first > last or step == 0:
            raise ValueError(f"{item!r} as day of week")
        chosen.update(day % 7 for day in range(first, last + 1, step))
    return "*" if len(chosen) == 7 else ",".join(_WEEKDAYS[day] for day in sorted(chosen))


def _weekday(value: str) -> int:
    """0 to 7. Raises ValueError."""
    if value in _WEEKDAYS:
        return _WEEKDAYS.index(value)
    if not value.isdecimal() or int(value) > 7:
        raise ValueError(f"{value!r} as day of week")
    return int(value)


def _zone(name: str | None) -> tzinfo:
    try:
        zone: tzinfo = ZoneInfo(name) if name is not None else CronTrigger().timezone
    except (KeyError, ValueError, OSError):  # No such zone; a path; a folder, as Europe is.
        what = "The machine's time zone cannot be found" if name is None else "There is no such time zone"
        raise ConfigError(
            f"{what}. --timezone takes a name such as UTC or Europe/Berlin. "
            f"Received: {os.environ.get('TZ', '') if name is None else name!r}"
        ) from None
    return zone


# ----------------------------------------------------------------------------------------------------------- the state


def _last_start(state_file: Path, console: Console) -> datetime | None:
    try:
        return State.read(state_file).last_start
    except FileNotFoundError:
        return None
    except ValueError:  # pydantic's ValidationError, or not even text.
        console.warn(f"{state_file} is damaged: what was missed until now is not known.")
        return None


def _keep(state_file: Path, last_start: datetime) -> None:
    write_atomically(state_file, State(last_start=last_start).model_dump_json(indent=2) + "\n")


# ------------------------------------------------------------------------------------------------------------- the job


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask for an end, in a list that grows; nothing is interrupted."""
    asked: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _run(command: list[str], asked: list[int], console: Console) -> tuple[int, str]:
    """One job: its exit code, negative for a signal, and its standard output."""
    try:
        # A file, not a pipe: it needs no reader, and whatever the job started may hold it open.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            # A group of its own: Ctrl-C is for the scheduler, which hands it on once.
            job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, process_group=0)
            handed_on = 0
            while True:
                try:
                    code = job.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if len(asked) > handed_on:
                        handed_on += 1
                        if handed_on == 1:
                            console.say("stopping: the job puts things in order (once more, and it is killed)")
                            job.terminate()
                        else:
                            os.killpg(job.pid, signal.SIGKILL)
            output.seek(0)
            return code, output.read()
    except OSError as error:
        return 1, json.dumps({"outcome": "failed", "reason": f"it cannot be started: {error.strerror}"}) + "\n"


def _outcome(code: int, output: str) -> str:
    """One line on what came of a job."""
    try:
        told = json.loads(output.splitlines()[-1])
        return " ".join(f"{told['outcome']}: {told['reason']}".split())
    except (IndexError, ValueError, KeyError, TypeError):
        if code < 0:
            return f"failed: ended by signal {-code} ({signal.strsignal(-code)})"
        return f"{'failed: ' if code else ''}ended with exit code {code} and told no outcome"


# ------------------------------------------------------------------------------------------------------------- in words


def _tell(times: Times, moment: datetime, count: int, jitter_seconds: int, console: Console) -> None:
    shown = []
    for _ in range(count):
        moment = times(moment)
        shown.append(_shown(moment))
    console.say(f"next: {', '.join(shown)}" + (f", up to {jitter_seconds} s later" if jitter_seconds else ""))


def _shown(moment: datetime) -> str:
    return f"{moment:%a %Y-%m-%d %H:%M %Z}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
