"""`graft rollback`."""

from pathlib import Path

from pipeline.cli import (
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
            registry = Registry(registry_uri(output_dir), name)
            with promotion.alone(home):
                promotion.agree(registry, home, Console())
            for left in champion.rejected[-1:]:
                when = champion.since[:16].replace("T", " ")
                registry.tag(left.registered, {"graft.rolled_back": f"{when}: {left.reason}"})
            registry.log(f"rolled back to version {champion.registered}: {reason}")
        except TrackingError as error:
            Console().warn(f"The next {graft()} retrain brings MLflow's aliases in line. {error}")
