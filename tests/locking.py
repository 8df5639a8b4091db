"""Processes that take locks, and what they are asked."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.locks import Pace

FAST = Pace(renew=0.2, expiry=2.0, poll=0.05)


PATIENT = Pace(renew=0.2, expiry=3600, poll=0.05)


# A job that does what its standard input says, line by line, and answers each line.
JOB = """
import os, signal, socket, subprocess, sys
from contextlib import ExitStack
from pathlib import Path
from pipeline.console import Console
from pipeline.locks import Held, Lease, Pace, locked

kind, uri, folder, host, renew, expiry = sys.argv[1:]
pace, console = Pace(float(renew), float(expiry), 0.05), Console(quiet=True)
if host:
    socket.gethostname = lambda: host
stack, lock = ExitStack(), None
print("ready", flush=True)
for line in sys.stdin:
    try:
        match line.strip():
            case "lock" if kind == "lease":
                lock = Lease("ants", uri, console, pace)
                lock.claim()
                stack.callback(lock.release)
            case "lock":
                lock = stack.enter_context(locked("ants", uri, Path(folder), console, pace))
            case "check":
                lock.check()
            case "release":
                stack.close()
            case "children":
                program = subprocess.Popen(["sleep", "600"])
                fork = os.fork()
                if fork == 0:
                    signal.pause()
                print(program.pid, fork, end=" ")
        print("yes", flush=True)
    except Held as error:
        print("no", error, flush=True)
"""


class Job:
    """A process that runs JOB; `kind` is file, for `locked`, or lease, for the lease alone."""

    def __init__(self, kind: str, uri: str, folder: Path, host: str = "", pace: Pace = PATIENT) -> None:
        arguments = [kind, uri, str(folder), host, str(pace.renew), str(pace.expiry)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert self.answer() == "ready"

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.process.wait()


def assert_one_of(contenders: list[Job]) -> None:
    for job in contenders:
        job.tell("lock")
    answers = [job.answer() for job in contenders]
    assert sorted(answer[:3] for answer in answers) == ["no ", "yes"], answers
    for job in contenders:
        assert job.ask("release") == "yes"
