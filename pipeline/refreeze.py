"""The next version of a frozen test set: a decision of a person, for it changes what every later figure means."""

from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import contents, ingest, publish, testset
from pipeline.activations import opened
from pipeline.artifacts import LEARNED_FROM
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.errors import ConfigError, DataError
from pipeline.locks import locked
from pipeline.mlflow_client import resolve_uri
from pipeline.pixels import PixelSpec
from pipeline.sources import open_source
from pipeline.testset import FrozenTest


def refreeze(config: RunConfig, console: Console) -> tuple[FrozenTest, FrozenTest]:
    """Freezes the pictures that belong to the test split now. Those that the champion has learned from stay out.

    Returns:
        The version before, and the new one; the same twice where no picture has come or gone.

    Raises:
        ConfigError: nothing is frozen yet.
        DataError: the data cannot be used, or no picture is left.
        Held: a retraining is at work.
    """
    with locked(config.name, resolve_uri(config), Path(config.output_dir).resolve(), console):
        return _refreeze(config, console)


def _refreeze(config: RunConfig, console: Console) -> tuple[FrozenTest, FrozenTest]:
    folder = testset.folder_of(config.output_dir, config.name)
    before = testset.newest(folder)
    if before is None:
        raise ConfigError(
            f"{config.name} has no frozen test set yet: the first graft retrain makes it, of its test split. Run: "
            "graft retrain CONFIG"
        )
    data = config.data
    spec = PixelSpec(config.image_size, config.image_size, data.crop, data.max_megapixels)
    with (
        TemporaryDirectory(dir=folder) as scratch,
        opened(config.cache, Path(config.cache_dir), console) as store,
    ):
        splits = ingest.ingest(data, open_source(data), spec, Path(scratch), folder / "quarantine.csv", store, console)
    home = Path(config.export.dir).resolve() / config.name
    learned: set[str] = set()
    champion = publish.champion(home)
    model = None if champion is None else publish.folder_of(home, champion.version)
    if model is not None and (model / LEARNED_FROM).is_file():
        learned = contents.learned(model / LEARNED_FROM)
    now = testset.of_splits(testset.separated(splits, before, wait=False), before.version + 1)
    out = now.digests & learned
    now = now.model_copy(update={"pictures": [p for p in now.pictures if p.sha256 not in out]})
    if out:
        console.say(f"{len(out)} pictures stay out: the champion has learned from them")
    if not now.pictures:
        raise DataError("The champion has learned from every picture of the test split. Add pictures to it.")
    if now.digests == before.digests:
        return before, before
    testset.freeze(folder, now)
    return before, now
