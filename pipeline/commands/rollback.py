"""`graft rollback`."""

from pathlib import Path

from pipeline.cli import (
    ConfigOption,
    ExportFolder,
    Name,
    OutputDir,
    Reason,
    errors_in_words,
    graft,
    registry_uri,
    served_home,
    shown,
)
from pipeline.console import Console
from pipeline.errors import TrackingError


def rollback(
    name: Name,
    reason: Reason,
    export: ExportFolder = Path("export"),
    output_dir: OutputDir = Path("runs"),
    config: ConfigOption = None,
) -> None:
    """Go back to the champion before. Servers follow at their next look; MLflow may be away."""
    with errors_in_words():
        from pipeline import promotion
        from pipeline.registry import Registry

        home = served_home(export, name)
        with promotion.alone(home):
            champion = promotion.go_back(home, reason)
        print(f"{name}: version {champion.registered} is served from {shown(home / str(champion.version))}")
        try:
            registry = Registry(registry_uri(output_dir, config), name)
            promotion.log_rollback(registry, home, champion, reason, Console())
        except TrackingError as error:
            Console().warn(f"The next {graft()} retrain brings MLflow's aliases in line. {error}")
