"""When jobs start and what becomes of them: real time in the small, real processes, real signals."""

import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline import schedule as module
from pipeline.console import Console
from pipeline.errors import ConfigError
from pipeline.schedule import State, cron_times, repeat, schedule

MONDAY = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def days(cron, count, start=MONDAY, timezone="UTC"):
    """The next scheduled times, as short text."""
    times, found = cron_times(cron, timezone), []
    for _ in range(count):
        start = times(start)
        found.append(f"{start:%a %d %H:%M}")
    return found


# The timetable


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * *", ["Tue 24 03:00", "Wed 25 03:00"]),
        ("0 12 * * *", ["Tue 24 12:00"]),  # Strictly later than noon.
        ("*/20 * * * *", ["Mon 23 12:20", "Mon 23 12:40", "Mon 23 13:00"]),
        ("0 3 * * 0", ["Sun 29 03:00", "Sun 06 03:00"]),
        ("0 3 * * 7", ["Sun 29 03:00", "Sun 06 03:00"]),
        ("0 3 * * 1", ["Mon 30 03:00"]),
        ("0 3 * * 5-7", ["Fri 27 03:00", "Sat 28 03:00", "Sun 29 03:00", "Fri 04 03:00"]),
        ("0 3 * * FRI-SUN", ["Fri 27 03:00", "Sat 28 03:00", "Sun 29 03:00", "Fri 04 03:00"]),
        ("0 3 * * 0-6", ["Tue 24 03:00", "Wed 25 03:00"]),
        ("0 3 * * */2", ["Tue 24 03:00", "Thu 26 03:00", "Sat 28 03:00", "Sun 29 03:00"]),
        ("0 3 * * 6,sun", ["Sat 28 03:00", "Sun 29 03:00"]),
        ("0 3 1 jan *", ["Fri 01 03:00"]),
        ("0 3 24,25 * *", ["Tue 24 03:00", "Wed 25 03:00", "Thu 24 03:00"]),
        # Both restricted: either is enough.
        ("0 3 26 * 0", ["Thu 26 03:00", "Sun 29 03:00", "Sun 06 03:00"]),
        # One begins with a star: both must hold.
        ("0 3 */2 * 0", ["Sun 29 03:00", "Sun 13 03:00"]),
        (" 0\t3  *   * * ", ["Tue 24 03:00"]),
    ],
)
def test_an_expression_means_what_it_means_to_cron(cron, expected):
    assert days(cron, len(expected)) == expected


@st.composite
def fields(draw, low, high):
    """A field and the values it stands for."""
    chosen, words = set(), []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high))
        last = draw(st.integers(first, high))
        step = draw(st.integers(1, max(1, min(9, high - low))))
        kind = draw(st.sampled_from(["value", "range", "step", "all"] if not words else ["value", "range"]))
        if kind == "value" or (kind == "step" and last - first < step):
            words.append(str(first))
            chosen.add(first)
        elif kind == "range":
            words.append(f"{first}-{last}")
            chosen.update(range(first, last + 1))
        elif kind == "step":
            words.append(f"{first}-{last}/{step}")
            chosen.update(range(first, last + 1, step))
        else:
            words.append(f"*/{step}")
            chosen.update(range(low, high + 1, step))
            break  # Not in a list, so that the star is at the beginning.
    return ",".join(words), chosen


@settings(deadline=None)
@given(
    minute=fields(0, 59), hour=fields(0, 23), day=fields(1, 28), month=fields(1, 12), weekday=fields(0, 6),
    moment=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
)  # fmt: skip
def test_any_expression_is_read_as_by_the_definition(minute, hour, day, month, weekday, moment):
    cron = " ".join(text for text, _ in (minute, hour, day, month, weekday))
    moment = moment.replace(tzinfo=UTC)
    either = not day[0].startswith("*") and not weekday[0].startswith("*")

    def of(date):
        by_day, by_weekday = date.day in day[1], (date.weekday() + 1) % 7 in weekday[1]
        return date.month in month[1] and ((by_day or by_weekday) if either else (by_day and by_weekday))

    # Days beyond 28 are not drawn, but */n reaches them.
    assume(not day[0].startswith("*"))
    date = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    while True:
        if of(date):
            todays = (date.replace(hour=h, minute=m) for h in sorted(hour[1]) for m in sorted(minute[1]))
            expected = next((time for time in todays if time > moment), None)
            if expected is not None:
                break
        date += timedelta(days=1)
        if date - moment > timedelta(days=366 * 30):
            assume(False)
    assert cron_times(cron, "UTC")(moment) == expected


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("", "0 fields"),
        ("0 3 * *", "4 fields"),
        ("0 3 * * * *", "6 fields"),
        ("@daily", "1 fields"),
        ("60 * * * *", "60"),
        ("* 24 * * *", "24"),
        ("0 3 0 * *", "0"),
        ("0 3 * 13 *", "13"),
        ("0 3 * * 8", "'8' as day of week"),
        ("0 3 * * 5-1", "'5-1' as day of week"),
        ("0 3 * * */0", "'\\*/0' as day of week"),
        ("*/0 3 * * *", "higher than 0"),
        ("0 3 * * mob", "'mob' as day of week"),
        ("0 3 * jam *", "jam"),
        ("a * * * *", "'a' as minute"),
        ("0 3 last * *", "'last' as day of month"),
        ("0 3 * * ?", "'\\?' as day of week"),
        ("٣ * * * *", "as minute"),
        ("1,,2 * * * *", "'' as minute"),
        ("0 3 30 2 *", "never comes"),
    ],
)
def test_a_mistake_in_the_expression_is_told(cron, words):
    with pytest.raises(ConfigError, match=words) as caught:
        cron_times(cron, "UTC")
    assert repr(cron) in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.text("0123456789*/,-?L#@ monsufriajy", max_size=6), min_size=5, max_size=5).map(" ".join))
def test_any_text_is_a_timetable_or_a_mistake(cron):
    try:
        times = cron_times(cron, "UTC")
    except ConfigError:
        return
    assert times(MONDAY) > MONDAY


@pytest.mark.parametrize("zone", ["Nowhere/Town", "Europe", "../etc/passwd", "/etc/localtime", "", "Europe/Berl\x00in"])
def test_a_mistake_in_the_time_zone_is_told(zone):
    with pytest.raises(ConfigError, match="no such time zone"):
        cron_times("0 3 * * *", zone)


@pytest.mark.parametrize(
    ("zone", "expected"),
    [("Asia/Tokyo", "2026-11-24T03:00:00+09:00"), ("Nowhere/Town", "ConfigError: The machine's time zone cannot be")],
)
def test_without_a_zone_it_is_the_machines(zone, expected):
    program = (
        "from datetime import UTC, datetime; from pipeline.schedule import cron_times;"
        "print(cron_times('0 3 * * *', None)(datetime(2026, 11, 23, 12, tzinfo=UTC)).isoformat())"
    )
    # In a process of its own: the zone is looked up once.
    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TZ": zone}, capture_output=True, text=True, check=False
    )
    assert expected in result.stdout + result.stderr


# Where clocks go forward at midnight, that midnight does not come.
@pytest.mark.parametrize(
    "zone",
    [
        "UTC",
        "Europe/Berlin",
        "Europe/Dublin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kolkata",
        "Africa/Cairo",
    ],
)
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 3 * * *", "59 1 * * *", "15 1 * * *"])
def test_a_nightly_job_runs_once_a_day_when_clocks_change_too(cron, zone):
    times, moment = cron_times(cron, zone), datetime(2026, 1, 1, 12, tzinfo=UTC)
    nights = []
    for _ in range(365):
        found = times(moment)
        assert found.astimezone(UTC) > moment
        moment = found.astimezone(UTC)
        nights.append(found.date())
    assert nights == [nights[0] + timedelta(days=number) for number in range(365)]


@settings(deadline=None)
@given(
    st.sampled_from(["Europe/Berlin", "America/Santiago", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia"]),
    st.sampled_from(["*/30 * * * *", "0 0 * * *", "30 2 * * *", "7 */2 * * 0", "59 23 * * 6"]),
    st.datetimes(datetime(2011, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
)
def test_times_ascend_in_every_zone(zone, cron, moment):
    times = cron_times(cron, zone)
    for _ in range(100):
        found = times(moment)
        assert found.astimezone(UTC) > moment
        assert not found.fold
        assert found.tzinfo == ZoneInfo(zone)
        moment = found.astimezone(UTC)


# Jobs

DRIVER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from pipeline.console import Console
from pipeline.schedule import repeat

def times(moment, seconds=float(sys.argv[1])):
    return datetime.fromtimestamp((moment.timestamp() // seconds + 1) * seconds, UTC)

try:
    repeat(sys.argv[3:], times, 0, Path(sys.argv[2]), Console())
except KeyboardInterrupt:
    sys.exit(130)
"""
JOB = """
import json, signal, sys, time
from pathlib import Path

log, seconds, ending = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
def note(what):
    with log.open("a") as file:
        file.write(f"{what} {time.time()}\\n")
def asked(number, frame):
    note(signal.Signals(number).name)
    if ending == "orderly":
        time.sleep(0.5)
        note("in order")
        sys.exit(130)
signal.signal(signal.SIGTERM, asked)
signal.signal(signal.SIGINT, asked)
note("start")
end = time.monotonic() + seconds
while time.monotonic() < end:
    time.sleep(0.02)
note("end")
print("some figures")
print(json.dumps({"outcome": "promoted", "reason": "it is\\nbetter"}))
"""


class Scheduler:
    """A scheduler in a process of its own, and what its jobs write down."""

    def __init__(self, folder, every, seconds, ending="orderly"):
        self.folder, self.state = folder, folder / "schedule.json"
        self.log = folder / "jobs"
        job = [sys.executable, "-c", JOB, str(self.log), str(seconds), ending]
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(every), str(self.state), *job],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip

    def jobs(self):
        """Lines such as ("start", 1795264580.1)."""
        if not self.log.exists():
            return []
        lines = [line.split(" ") for line in self.log.read_text().splitlines()]
        return [(" ".join(words[:-1]), float(words[-1])) for words in lines]

    def wait_for(self, what, count=1):
        deadline = time.monotonic() + 30
        while [name for name, _ in self.jobs()].count(what) < count:
            assert time.monotonic() < deadline, self.jobs()
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.ended()

    def ended(self):
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture
def scheduler(tmp_path):
    started = []

    def start(*arguments):
        started.append(Scheduler(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def test_jobs_run_one_after_another_and_end_with_what_they_told(scheduler):
    running = scheduler(0.5, 0.8)
    running.wait_for("end", 3)
    code, out, err = running.end()
    assert code == 0
    names = [name for name, _ in running.jobs() if name in ("start", "end")]
    assert names[:6] == ["start", "end"] * 3  # Never two at once, though each lasts longer than the time between two.
    assert out.splitlines()[:2] == ["some figures", '{"outcome": "promoted", "reason": "it is\\nbetter"}']
    assert err.startswith("next: ")
    assert err.splitlines()[0].count("UTC") == 3
    assert err.count("promoted: it is better (1 s)") == 3
    assert err.count("graft retrain\n") >= 3


def test_sigterm_while_waiting_ends_at_once(scheduler):
    running = scheduler(3600, 0)
    while not running.state.exists():
        time.sleep(0.02)
    time.sleep(0.3)
    code, _, err = running.end()
    assert (code, running.jobs()) == (0, [])
    assert "error" not in err


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_running_job_is_asked_once_to_end_and_waited_for(scheduler, number, expected):
    running = scheduler(1, 60)
    running.wait_for("start")
    code, _, err = running.end(number)
    assert code == expected
    assert [name for name, _ in running.jobs()] == ["start", "SIGTERM", "in order"]
    assert re.search(r"^stopped after \d+ s: the next start continues it$", err, re.MULTILINE)


def test_ctrl_c_reaches_the_job_through_the_scheduler_alone(scheduler):
    running = scheduler(1, 60)
    running.wait_for("start")
    os.killpg(running.process.pid, signal.SIGINT)  # As a terminal does.
    code, _, _ = running.ended()
    assert code == 130
    assert [name for name, _ in running.jobs()] == ["start", "SIGTERM", "in order"]


def test_a_second_signal_kills(scheduler):
    running = scheduler(1, 60, "deaf")
    running.wait_for("start")
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("SIGTERM")
    code, _, err = running.end()
    assert code == 0
    assert re.search(r"^killed after \d+ s: the next start continues it$", err, re.MULTILINE)
    assert [name for name, _ in running.jobs()] == ["start", "SIGTERM"]


def test_a_job_that_was_stopped_goes_on_at_the_next_start(scheduler):
    first = scheduler(3600, 60)
    first.process.kill()
    first.process.communicate()
    State(last_start=datetime.now(UTC) - timedelta(hours=2)).write(first.state)
    second = scheduler(3600, 60)
    second.wait_for("start")
    second.end()
    third = scheduler(3600, 0)
    third.wait_for("end")
    time.sleep(0.5)
    code, _, _ = third.end()
    assert code == 0
    assert [name for name, _ in third.jobs()] == ["start", "SIGTERM", "in order", "start", "end"]


def test_a_killed_scheduler_catches_up_on_its_job(scheduler):
    first = scheduler(1, 2)
    first.wait_for("start")
    first.process.kill()
    first.process.communicate()
    second = scheduler(1, 2)
    second.wait_for("start", 2)  # Also where the first one's job is still at work: graft retrain's own lock sees to it.
    second.end()


def test_what_was_missed_is_caught_up_once(scheduler, tmp_path):
    State(last_start=datetime.now(UTC) - timedelta(days=30)).write(tmp_path / "schedule.json")
    running = scheduler(3600, 0)
    running.wait_for("end")
    time.sleep(1)
    code, _, err = running.end()
    assert code == 0
    assert [name for name, _ in running.jobs()] == ["start", "end"]
    assert err.count("was missed: caught up now") == 1
    assert err.count("next: ") == 1  # When the job is done.
    assert datetime.now(UTC) - State.read(running.state).last_start < timedelta(minutes=1)


# Jobs that fail, states that are damaged, clocks that jump: in this process, with a clock that is told what to show

POLL = 0.001


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", POLL)


class Clock:
    """Shows one moment after the other; then asks for the end."""

    def __init__(self, moments):
        self.left = list(moments)
        self.last = self.left[0]

    def __call__(self):
        if self.left:
            self.last = self.left.pop(0)
        else:
            signal.raise_signal(signal.SIGTERM)
        return self.last


def hourly(moment):
    return moment.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)


def starts(tmp_path, moments, command=None, jitter=0, times=hourly):
    """What the clock showed when jobs started."""
    log, clock = tmp_path / "log", Clock(moments)
    command = command or ["sh", "-c", f"echo x >> {log}; echo '{{}}'"]
    shown = []

    def now():
        count = len(log.read_text()) if log.exists() else 0
        if count > sum(2 for _ in shown):
            shown.append(clock.last)
        return clock()

    repeat(command, times, jitter, tmp_path / "schedule.json", Console(), now)
    return [f"{moment:%d %H:%M}" for moment in shown]


def at(*texts):
    return [datetime.strptime(f"2026-11-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC) for text in texts]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        (["23 12:30", "23 12:40", "23 12:59"], []),
        (["23 12:30", "23 12:40", "23 13:00", "23 13:01", "23 13:59"], ["23 13:00"]),
        (["23 12:30", "23 13:00", "23 14:00", "23 14:30"], ["23 13:00", "23 14:00"]),
        # Forwards, or asleep: once, not thirteen times.
        (["23 12:30", "23 12:40", "24 01:20", "24 01:21", "24 01:59"], ["24 01:20"]),
        # Backwards by less than a day: what has run does not run again.
        (["23 12:30", "23 13:00", "23 12:58", "23 12:59", "23 13:00", "23 13:59"], ["23 13:00"]),
        (["23 12:30", "23 13:00", "23 12:58", "23 13:30", "23 14:00", "23 14:01"], ["23 13:00", "23 14:00"]),
        # By days: from then on as before.
        (["23 12:30", "23 13:00", "20 12:30", "20 12:59", "20 13:00", "20 13:10"], ["23 13:00", "20 13:00"]),
        # Forwards by mistake, and set right.
        (["23 12:30", "29 12:30", "23 12:31", "23 12:32", "23 13:00"], ["29 12:30", "23 13:00"]),
    ],
)
def test_a_clock_that_jumps_repeats_nothing_and_stops_nothing(tmp_path, moments, expected):
    # Each moment twice: the clock is looked at before the wait and in it.
    doubled = [moment for moment in at(*moments) for _ in range(2)]
    found = starts(tmp_path, doubled)
    assert found == expected


@pytest.mark.usefixtures("quick")
def test_jitter_delays_and_repeats_nothing(tmp_path, capfd):
    moments = [MONDAY + timedelta(minutes=30, seconds=number) for number in range(0, 3 * 3600, 20)]
    found = [datetime.strptime(text, "%d %H:%M") for text in starts(tmp_path, moments, jitter=600)]
    assert [moment.hour for moment in found] == [13, 14, 15]
    assert all((moment.minute, moment.second) <= (10, 20) for moment in found)
    assert len({moment.minute for moment in found}) > 1 or found[0].minute != 0
    assert "up to 600 s later" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("job", "words"),
    [
        ('echo \'{"outcome": "failed", "reason": "MLflow is away"}\'; exit 1', "failed: MLflow is away ("),
        ("exit 2", "failed: ended with exit code 2 and told no outcome ("),
        ("kill -9 $$", "failed: ended by signal 9 (Killed) ("),
        ("printf '\\377\\n[]\\n'", "ended with exit code 0 and told no outcome ("),
    ],
)
def test_a_job_that_fails_is_told_in_a_line_and_the_next_one_comes(tmp_path, capfd, job, words):
    log = tmp_path / "log"
    moments = at("23 12:30", "23 12:30", "23 13:00", "23 13:00", "23 14:00", "23 14:00", "23 14:30", "23 14:30")
    assert len(starts(tmp_path, moments, ["sh", "-c", f"echo x >> {log}; {job}"])) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if words in line]
    assert len(told) == 2
    assert all(line.startswith("warning:") == words.startswith("failed") for line in told)


@pytest.mark.usefixtures("quick")
def test_a_command_that_cannot_be_started_is_a_failed_job(tmp_path, capfd):
    moments = at("23 12:30", "23 12:30", "23 13:00", "23 13:00", "23 13:30", "23 13:30")
    starts(tmp_path, moments, [str(tmp_path / "nothing")])
    assert "failed: it cannot be started: No such file or directory" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"last_start": 1e99}', b'{"last_start": "soon"}', b"\xff\xfe"])
def test_a_damaged_state_is_told_and_written_anew(tmp_path, capfd, content):
    (tmp_path / "schedule.json").write_bytes(content)
    assert starts(tmp_path, at("23 12:30", "23 12:30", "23 13:00", "23 13:00")) == ["23 13:00"]
    assert "is damaged" in capfd.readouterr().err
    assert State.read(tmp_path / "schedule.json").last_start == at("23 13:00")[0]


@pytest.mark.usefixtures("quick")
def test_a_state_from_the_end_of_time_stops_nothing(tmp_path, capfd):
    State(last_start=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)).write(tmp_path / "schedule.json")
    assert starts(tmp_path, at("23 12:30", "23 12:30", "23 13:00", "23 13:00")) == ["23 13:00"]
    assert "The clock was set back by days, from 9999-12-31 23:59 UTC" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_full_disk_ends_no_schedule(tmp_path, capfd, monkeypatch):
    keep, calls = module.write_atomically, []

    def full(path, text):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        keep(path, text)

    monkeypatch.setattr(module, "write_atomically", full)
    moments = at("23 12:30", "23 12:30", "23 13:00", "23 13:00", "23 14:00", "23 14:00", "23 14:10")
    assert starts(tmp_path, moments) == ["23 13:00", "23 14:00"]
    assert "No space left on device. After a restart the job may run once more." in capfd.readouterr().err


def test_signals_mean_again_what_they_meant(tmp_path, quick):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    starts(tmp_path, at("23 12:30", "23 12:31"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# The command's body


CONFIG = "name: ants\ndata: {{source: digits, crop: 1.0}}\nbackbone: {{name: lenet5, weights: none}}\noutput_dir: {}\n"


def test_each_job_is_graft_retrain_with_the_same_words(tmp_path, monkeypatch):
    path = tmp_path / "my.yaml"
    path.write_text(CONFIG.format(tmp_path / "runs"))
    handed = []
    monkeypatch.setattr(module, "repeat", lambda *arguments: handed.append(arguments))
    schedule(path, ["seed=1", "name=bees"], "0 3 * * *", 60, "UTC", Console())
    ((command, times, jitter, state_file, _),) = handed
    assert command[:4] == [sys.executable, "-P", "-m", "pipeline"]
    assert command[4:] == ["retrain", str(path), "--json", "--set", "seed=1", "--set", "name=bees"]
    assert times(MONDAY) == MONDAY.replace(day=24, hour=3)
    assert (jitter, state_file) == (60, tmp_path / "runs" / "bees" / "schedule.json")


@pytest.mark.parametrize(
    ("overrides", "cron", "zone"), [(["seed=x"], "0 3 * * *", None), ([], "nightly", None), ([], "0 3 * * *", "Mars")]
)
def test_a_mistake_ends_it_before_anything_starts(tmp_path, overrides, cron, zone):
    path = tmp_path / "my.yaml"
    path.write_text(CONFIG.format(tmp_path / "runs"))
    with pytest.raises(ConfigError):
        schedule(path, overrides, cron, 0, zone, Console())
    assert not (tmp_path / "runs").exists()


def test_the_module_needs_no_tensorflow():
    program = "import sys, pipeline.schedule; sys.exit(bool({'tensorflow', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
