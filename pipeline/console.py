"""What the user sees while a command works: notes and progress on standard error, plain when it is not a terminal.

A run's log gets the same in words, whatever is shown.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console as RichConsole
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BAR = (4, 24)  # Columns at least and at most.
_CELL = 6
_GAP = "  "


class Advance(Protocol):
    def __call__(self, steps: int = 1, note: str = "", label: str = "") -> None:
        """Moves a bar by `steps`, shows `note`, the newest figures, behind it, and `label` before it from now on."""


class Console:
    """Where stages report to. A stage gets one as an argument and never prints.

    Attributes:
        quiet: whether it shows nothing but warnings and errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        """Writes to standard error."""
        self._rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._logs: list[TextIO] = []
        self._widths: dict[str, int] = {}  # The widths of the columns under the header that was printed last.

    def say(self, text: str) -> None:
        """One line of news."""
        self.log(text)
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """One line that the user should know about, or act on."""
        self.log(f"warning: {text}")
        self._print(Text.assemble(("warning:", "yellow"), " ", text), always=True)

    def error(self, text: str) -> None:
        """The paragraph that a command ends with."""
        self._print(Text.assemble(("error:", "red"), " ", text), always=True)

    def row(self, cells: Mapping[str, str], text: str) -> None:
        """One row of a table on a terminal, a line of text elsewhere.

        Args:
            cells: by the headers of their columns, of one line or more. Of rows in sequence the first sets the widths.
                Where the terminal is too narrow, columns are left out from the right.
            text: the same in words.
        """
        self.log(text)
        if not self._live:
            self._print(Text(text))
            return
        widths = self._widths
        if list(widths) != list(cells):
            widths = {name: max(_CELL, len(cell), *map(len, name.split("\n"))) for name, cell in cells.items()}
            lines = list(zip_longest(*(name.split("\n")[::-1] for name in cells), fillvalue=""))
            for line in reversed(lines):
                self._print(Text(self._aligned(line, widths), style="dim"))
        self._print(Text(self._aligned(cells.values(), widths)))
        self._widths = widths

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str = "images", keep: bool = True) -> Iterator[Advance]:
        """Progress over `total` steps (None: unknown), on a terminal while it lasts; then one line, everywhere.

        Args:
            label: what is in progress.
            total: how many steps there are.
            unit: what the steps are, in the plural.
            keep: False leaves out that line, where the caller has a better one.
        """
        started, done, newest = time.perf_counter(), 0, ""
        with Progress(
            _Line(self._rich, unit),
            console=self._rich,
            transient=True,
            redirect_stdout=False,  # It is for results, and may be a pipe.
            disable=not self._live,
        ) as progress:
            task = progress.add_task(label, total=total, note="")

            def advance(steps: int = 1, note: str = "", label: str = "") -> None:
                nonlocal done, newest
                done, newest = done + steps, note or newest
                progress.update(task, advance=steps, note=newest, description=label or None)

            yield advance
        if keep:
            figures = [_rate(done / (time.perf_counter() - started), unit)] if done else []
            self.say(f"{label}: {', '.join([*figures, *filter(None, [newest])]) or 'done'}")

    @contextmanager
    def also_to(self, path: Path) -> Iterator[None]:
        """Appends what is said meanwhile, with UTC times, to a file too.

        Raises:
            OSError: the file cannot be opened.
        """
        with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
            self._logs.append(file)
            try:
                yield
            finally:
                self._logs.remove(file)

    def log(self, text: str) -> None:
        """One line in the files of `also_to` alone."""
        for file in self._logs:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n")

    @property
    def _live(self) -> bool:
        """Whether bars move and tables are aligned. FORCE_COLOR makes no terminal of a file."""
        return not self.quiet and self._rich.file.isatty() and not self._rich.is_dumb_terminal

    def _aligned(self, cells: Iterable[str], widths: Mapping[str, int]) -> str:
        line = ""
        for cell, width in zip(cells, widths.values(), strict=True):
            if len(line) + len(_GAP) + width > self._rich.width:
                break
            line += f"{_GAP}{cell:>{width}}"
        return line.rstrip()

    def _print(self, text: Text, always: bool = False) -> None:
        self._widths = {}
        if always or not self.quiet:
            self._rich.print(text)


class _Line(ProgressColumn):
    """A bar on one line, with as many of its figures as there is room for, the least needed left out first."""

    def __init__(self, console: RichConsole, unit: str) -> None:
        super().__init__()
        self._console, self._unit = console, unit

    def render(self, task: Task) -> Table:
        speed = task.speed or (task.completed / task.elapsed if task.elapsed else 0.0)
        count = f"{task.completed:,.0f}" + ("" if task.total is None else f"/{task.total:,.0f}")
        figures = {
            "count": count,
            "speed": _rate(speed, self._unit) if speed else "",
            "left": f"{_clock(task.remaining / speed)} left" if speed and task.remaining is not None else "",
            "memory": f"{held / 1e9:.1f} GB" if (held := _process_bytes()) >= 1e9 else f"{held / 1e6:.0f} MB",
            "note": str(task.fields["note"]),
        }
        room = self._console.width - len(task.description) - 1 - _BAR[0]
        shown = set()
        for name in ("left", "speed", "memory", "note", "count"):
            if figures[name] and (needed := len(_GAP) + len(figures[name])) <= room:
                room -= needed
                shown.add(name)
        bar = ProgressBar(task.total, task.completed, width=min(_BAR[0] + max(room, 0), _BAR[1]), pulse=not task.total)
        line = Table.grid(padding=0)
        line.add_row(
            Text(f"{task.description} "), bar, Text("".join(_GAP + figures[name] for name in figures if name in shown))
        )
        return line


def _rate(speed: float, unit: str) -> str:
    if speed < 0.5:
        return f"{1 / speed:,.0f} s/{unit.removesuffix('s')}"
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _process_bytes() -> int:
    """Of memory that this process has in use: its resident set."""
    import psutil  # Where only graft serve is installed it is missing, and there are no bars.

    return int(psutil.Process().memory_info().rss)
