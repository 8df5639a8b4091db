"""The commands, one file each. What a command needs beyond the standard library it imports when it is called."""

from collections.abc import Callable

from pipeline.commands import (
    backbones,
    cache,
    compare,
    data,
    freeze_test,
    init,
    inspect,
    lr,
    models,
    predict,
    promote,
    report,
    retrain,
    rollback,
    run,
    schedule,
    schema,
    screen,
    serve,
    sweep,
    sync,
    ui,
    watch,
)

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Look": (
        init.init,
        data.data,
        backbones.backbones,
        inspect.inspect,
        screen.screen,
        lr.lr,
        schema.schema,
    ),
    "Train": (run.run, report.report, compare.compare, sweep.sweep, ui.ui, sync.sync, cache.cache),
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
