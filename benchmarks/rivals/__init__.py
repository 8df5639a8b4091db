"""The recipes Graft is measured against: each as its own documentation gives it, each a process of its own.

All train MobileNet 0.25 at 224 pixels, from Keras's ImageNet weights, in two phases: a new head on the frozen network,
then the network too. Nothing is imported from the pipeline. A rival takes `arguments` and prints a `Result`, one JSON
object, as the last line of standard output.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path


def arguments(description: str | None) -> argparse.Namespace:
    """The command line, the same for every rival."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder with a folder of pictures per class")
    parser.add_argument("--validation", type=Path, required=True, help="the same, of the pictures that test each epoch")
    parser.add_argument("--frozen-epochs", type=int, default=10, help="epochs of the head alone; 0 leaves them out")
    parser.add_argument("--fine-tune-epochs", type=int, default=10, help="epochs of the network; 0 leaves them out")
    parser.add_argument("--unfreeze", choices=["all", "last-two-blocks"], default="all", help="what fine-tuning trains")
    parser.add_argument("--augment", action="store_true", help="with the recipe's own augmentation")
    parser.add_argument("--no-cache", action="store_true", help="without the recipe's pixels kept in memory")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass(frozen=True)
class Phase:
    """What one phase measured, in order of its epochs; empty if it was left out.

    epoch_seconds: each of training and validation. accuracies: of the validation pictures, in [0, 1].
    """

    epoch_seconds: list[float]
    accuracies: list[float]


@dataclass(frozen=True)
class Result:
    """What a rival reports. Seconds are of wall time; accuracies are of the validation pictures, in [0, 1].

    total_seconds is what a user waits for training, from the folders' paths to the end of the last epoch: reading the
    folders, compiling, tracing, both phases, validation after each epoch. It leaves out the imports and, in
    build_seconds, the construction of the network with its pretrained weights.
    """

    build_seconds: float
    frozen_seconds: float  # from the folders' paths to the end of the frozen phase
    frozen_epoch_seconds: list[float]
    fine_tune_seconds: float  # the rest of total_seconds
    fine_tune_epoch_seconds: list[float]
    total_seconds: float
    accuracy_frozen: float | None  # after the frozen phase's last epoch; null if it was left out
    accuracy: float | None  # after the very last epoch; null if there was none
    images: int  # pictures trained on
    versions: dict[str, str]

    @classmethod
    def of(
        cls, *, build: float, frozen: tuple[float, Phase], tuned: tuple[float, Phase], images: int, **versions: str
    ) -> "Result":
        """From the seconds of building the network, and of each phase with what it measured."""
        accuracies = frozen[1].accuracies + tuned[1].accuracies
        return cls(
            build_seconds=build,
            frozen_seconds=frozen[0],
            frozen_epoch_seconds=frozen[1].epoch_seconds,
            fine_tune_seconds=tuned[0],
            fine_tune_epoch_seconds=tuned[1].epoch_seconds,
            total_seconds=frozen[0] + tuned[0],
            accuracy_frozen=frozen[1].accuracies[-1] if frozen[1].accuracies else None,
            accuracy=accuracies[-1] if accuracies else None,
            images=images,
            versions=versions,
        )

    def print(self) -> None:
        """Writes the result to standard output, as one line of JSON."""
        print(json.dumps(asdict(self)), flush=True)
