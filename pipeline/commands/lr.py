"""`graft lr`."""

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import ConfigPath, Json, Overrides, Quiet, errors_in_words, graft, shown, stop_in_order
from pipeline.console import Console
from pipeline.errors import GraftError
from pipeline.quiet import import_tensorflow

if TYPE_CHECKING:
    from pipeline.lr_range import RangeTest


def lr(config: ConfigPath, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Test which learning rates each phase learns at, and suggest one. A run after it is as without it."""
    with errors_in_words():
        from pipeline.config_file import load

        stop_in_order()
        loaded = load(config, overrides)
        import_tensorflow()
        from pipeline import lr_range

        tests: list[RangeTest] = []
        page = Path(loaded.output_dir).resolve() / loaded.name / "lr" / "lr.html"
        ended: GraftError | None = None
        try:
            with closing(lr_range.tests_of(loaded, Console(quiet))) as of_phases:
                for test in of_phases:
                    tests.append(test)
                    _print(test)
        except GraftError as error:  # A phase that diverges ends the tests; of those before it all is known.
            if not tests:
                raise
            ended = error
        page.parent.mkdir(parents=True, exist_ok=True)
        lr_range.write_page(page, loaded, tests)
        print(f"page        {shown(page)}")
        if suggested := lr_range.settings(tests):
            keys = {setting.partition("=")[0] for setting in suggested}
            kept = [override for override in overrides or [] if override.partition("=")[0] not in keys]
            settings = " ".join(f"--set {shlex.quote(setting)}" for setting in [*kept, *suggested])
            print(f"to try      {graft()} run {shlex.quote(str(config))} {settings}")
        if as_json:
            found = {"name": loaded.name, "page": str(page), "phases": [test.figures() for test in tests]}
            print(json.dumps(found))
        if ended is not None:
            raise ended


def _print(test: "RangeTest") -> None:
    def row(what: str, rate: float | None, note: str = "") -> None:
        print(f"  {what:<12}{'–' if rate is None else f'{rate:.2g}':<10}{note}".rstrip())

    print(f"phase {test.number}     {test.phase.trains}, {test.phase.optimizer.name}")
    row("suggested", test.suggestion, test.why_not or "the middle of the fall")
    row("configured", test.phase.learning_rate, test.verdict)
    if test.minimum is not None:
        row("lowest loss", test.minimum, f"{test.curve.min():.3g}, from {test.unchanged.mean():.3g}")
        row("a tenth", test.minimum / 10, "of the lowest loss's: another common reading")
    row("diverged", test.diverged, "" if test.diverged else "nowhere up to the highest tried")
