"""`graft freeze-test`."""

from pipeline.cli import ConfigPath, Overrides, Quiet, errors_in_words
from pipeline.console import Console


def freeze_test(config: ConfigPath, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Let the pictures that wait into the test set, as its next version."""
    with errors_in_words():
        from pipeline.config_file import load
        from pipeline.refreeze import refreeze

        loaded = load(config, overrides)
        before, after = refreeze(loaded, Console(quiet))
        if before == after:
            print(f"{loaded.name}: no picture has come or gone, so test set {before.version} stays")
            return
        new, gone = len(after.digests - before.digests), len(before.digests - after.digests)
        print(
            f"{loaded.name}: test set {after.version} has {len(after.pictures)} pictures, {new} of them new; {gone} of "
            f"test set {before.version}'s are no longer in the data. The next challenger is judged on it."
        )
