"""What the user sees while a run works: notes and progress on standard error, plain when it is not a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Moves a bar by `steps` and shows `note`, the newest figures, behind it."""


class Console:
    """Where stages report to. A stage gets one as an argument and never prints."""

    def __init__(self, quiet: bool = False) -> None:
        """Writes to standard error; `quiet` keeps everything but warnings to itself."""
        self._rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """One line of news."""
        if not self._quiet:
            self._rich.print(escape(text))

    def warn(self, text: str) -> None:
        """One line that the user should know about, or act on."""
        self._rich.print(f"[yellow]warning:[/yellow] {escape(text)}")

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Advance]:
        """A progress bar over `total` steps (None: unknown) on a terminal, one line at the end elsewhere."""
        last_note = ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
        )
        shown = self._rich.is_terminal and not self._quiet
        with Progress(*columns, console=self._rich, disable=not shown) as progress:
            task = progress.add_task(escape(label), total=total, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                nonlocal last_note
                last_note = note or last_note
                progress.update(task, advance=steps, note=escape(last_note))

            yield advance
        if not shown:
            self.say(f"{label}: {last_note or 'done'}")
