"""The commands, one file each. What a command needs beyond the standard library it imports when it is called."""

from collections.abc import Callable

from pipeline.commands import (
    backbones,
    cache,
    freeze_test,
    init,
    models,
    predict,
    promote,
    retrain,
    rollback,
    run,
    schedule,
    schema,
    serve,
    sync,
    ui,
    watch,
)

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Look": (init.init, backbones.backbones, schema.schema),
    "Train": (run.run, ui.ui, sync.sync, cache.cache),
    "Live": (
        retrain.retrain,
        schedule.schedule,
        models.models,
        promote.promote,
        rollback.rollback,
        freeze_test.freeze_test,
        watch.watch,
    ),
    "Serve": (predict.predict, serve.serve),
}
"""In the order a user meets them, under the headings of `graft --help`."""
