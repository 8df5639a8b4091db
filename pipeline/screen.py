"""The quick check of network designs: kernels stay as they were drawn, only the head trains, and the score ranks.

Random convolution and pooling already select what natural pictures are made of, so that the designs that do well with
random kernels tend to do well trained: Jarrett et al., "What is the Best Multi-Stage Architecture for Object
Recognition?", ICCV 2009; Saxe et al., "On Random Weights and Unsupervised Feature Learning", ICML 2011. The same with
ImageNet's kernels ranks starting points for fine-tuning.

Shape letters: N pictures, D features, C classes.
"""

import math
import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from pipeline import finetune, inspection, model, pages, paired
from pipeline.activations import Store
from pipeline.backbones import BACKBONES, weights
from pipeline.config import Augment, BackboneConfig, Cache, Phase, RunConfig
from pipeline.config_file import parse
from pipeline.console import Console
from pipeline.errors import ConfigError, DataError, GraftError
from pipeline.feed import Pictures
from pipeline.frozen import PLAIN, Frozen, Views
from pipeline.ingest import mean_to_subtract
from pipeline.model import Network
from pipeline.pixels import PixelSpec
from pipeline.prepared import pixel_spec, read
from pipeline.seeding import reproducible
from pipeline.sources import open_source
from pipeline.splits import Splits

Kernels = Literal["none", "imagenet"]
"""As backbone.weights: random, or ImageNet's."""

KERNELS: dict[Kernels, str] = {"none": "random kernels", "imagenet": "ImageNet's kernels"}

_FEW = 100
"""Validation pictures, below which a warning says how coarse the scores are."""

_FRACTION = 0.4
"""Of the pictures, for validation: what such a warning suggests."""

_ALIKE = 1e-6
"""A feature that varies by less than this share of its size is the same for all pictures, but for rounding."""


@dataclass(frozen=True)
class Cost:
    """What a backbone takes.

    Attributes:
        weights: how many it has.
        multiply_adds: of one picture's forward pass.
        seconds: one picture takes, measured on this machine with all its cores.
    """

    weights: int
    multiply_adds: int
    seconds: float


@dataclass(frozen=True)
class Screened:
    """How far a head gets on one network's frozen kernels.

    Attributes:
        backbone: its name.
        kernels: which.
        image_size: side of its picture in pixels.
        accuracies: on the validation split, 0 to 1, for each seed: of kernels, head and order of pictures.
        validation: how many pictures that is.
        commonest: the share of them that always answering their commonest class would have right.
        cost: None where it could not be built.
        problem: why there are no accuracies; None where there are.
    """

    backbone: str
    kernels: Kernels
    image_size: int
    accuracies: tuple[float, ...] = ()
    validation: int = 0
    commonest: float = 0.0
    cost: Cost | None = None
    problem: str | None = None

    @property
    def mean(self) -> float:
        """Accuracy over the seeds, 0 to 1; NaN without any."""
        return float(np.mean(self.accuracies)) if self.accuracies else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds, by Student's t, within 0 and 1; None with less than two.

        It tells of the draw of kernels and head. That other validation pictures would give another score comes on top.
        """
        if len(self.accuracies) < 2:
            return None
        from scipy.stats import t

        count = len(self.accuracies)
        half = float(t.ppf(0.975, count - 1)) * float(np.std(self.accuracies, ddof=1)) / math.sqrt(count)
        return max(self.mean - half, 0.0), min(self.mean + half, 1.0)

    @property
    def beats_commonest(self) -> bool:
        """Whether the accuracy is above `commonest`, by the interval over seeds and by Wilson's of the mean on so many
        pictures: seeds that agree, or one alone, say nothing of the pictures."""
        of_pictures, _ = paired.wilson(round(self.mean * self.validation), self.validation)
        of_seeds, _ = self.interval or (self.mean, self.mean)
        return min(of_pictures, of_seeds) > self.commonest

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        cost = None if self.cost is None else vars(self.cost)
        mean = self.mean if self.accuracies else None
        return vars(self) | {"mean": mean, "interval": self.interval, "cost": cost}


def ranked(rows: Sequence[Screened]) -> list[Screened]:
    """The best mean first; those without a score last."""
    return sorted(rows, key=lambda row: -row.mean if row.accuracies else math.inf)


def told(rows: Sequence[Screened]) -> str:
    """What the scores with one kind of kernels do not tell apart, in words; empty where there are none."""
    scored = [row for row in ranked(rows) if row.accuracies]
    if not scored:
        return ""
    best, *others = scored
    sentences = []
    if best.interval is None:
        sentences.append("One seed gives no interval: the order may be chance.")
    elif others:
        alike = [row.backbone for row in others if row.interval is None or row.interval[1] >= best.interval[0]]
        sentences.append(
            f"Not told apart from {best.backbone}, as the intervals overlap: {', '.join(alike)}."
            if alike
            else f"No other interval overlaps that of {best.backbone}."
        )
    chance = [row.backbone for row in scored if not row.beats_commonest]
    if chance:
        beats = f"beat always answering the commonest class ({best.commonest:.3f})"
        none = len(chance) == len(scored)
        sentences.append(f"None is shown to {beats}." if none else f"Not shown to {beats}: {', '.join(chance)}.")
    return " ".join(sentences)


def few(config: RunConfig, rows: Sequence[Screened]) -> str:
    """A warning, where the validation split is small; empty where it is not, or nothing was scored."""
    count = next((row.validation for row in rows if row.accuracies), _FEW)
    if count >= _FEW:
        return ""
    warning = f"The validation split has {count} pictures: one of them is {100 / count:.1f} points."
    if config.data.validation_fraction < _FRACTION:
        warning += f" For scores less coarse: --set data.validation_fraction={_FRACTION}"
    return warning


def config_for(config: RunConfig, name: str) -> RunConfig:
    """The config with another network, whose kernels are random, and with the head alone training.

    The pictures have the config's size where the network takes it, else the network's own. The backbone's options are
    kept for the config's own network alone: others are as their authors defined them. The head trains as in the first
    phase, but without early stopping, which would choose by the pictures that the score is of, and on plain pictures.

    Raises:
        ConfigError: the network cannot be had with these settings.
    """
    row = BACKBONES[name]
    size = config.data.image_size
    if size is None or size < row.min_size or (row.fixed_size and size != row.default_size):
        size = row.default_size
    options = config.backbone.options if name == config.backbone.name else {}
    first = {"unfreeze": "head", "early_stopping": None, "layer_decay": None, "backbone_mode": "inference"}
    tree = config.model_dump(mode="json", by_alias=True)
    tree["backbone"] = {"name": name, "weights": "none", "options": options}
    tree["data"] |= {"image_size": size, "augment": {}, "views": None}
    if row.contract == "in-model":
        tree["data"]["mean_subtraction"] = "backbone"
    tree["phases"] = [tree["phases"][0] | first]
    return parse(tree, f"the config with {name}")


def screen(
    config: RunConfig, names: Sequence[str], kernels: Sequence[Kernels], seeds: int, console: Console
) -> Generator[Screened, None, None]:
    """Scores networks, one after the other, those that see pictures of the same size together, which are read once.
    It leaves nothing behind.

    Args:
        config: the pictures, the head and how it trains, and the first seed.
        names: rows of the table of networks.
        kernels: which to try for each network.
        seeds: how many draws of kernels and head; ImageNet's kernels are what they are.
        console: gets a bar per network.

    Yields:
        One for each network and kind of kernels. What is wrong with a network, such as weights that are missing, is
        said there, and the others go on.

    Raises:
        DataError: the pictures cannot be used.
    """
    of_size: dict[int, list[RunConfig]] = {}
    for name in names:
        try:
            plain = config_for(config, name)
        except ConfigError as error:
            for kind in kernels:
                yield Screened(name, kind, config.image_size, problem=str(error))
        else:
            of_size.setdefault(plain.image_size, []).append(plain)
    with finetune.strategy().scope():
        for configs in of_size.values():
            # What is done to pixels after they are read may differ, and nothing else.
            first, spec = configs[0], pixel_spec(configs[0])
            with read(first, open_source(first.data), spec, console) as (splits, _):
                for plain in configs:
                    for kind in kernels:
                        yield _screened(plain, spec, splits, kind, seeds, console)


def _screened(
    config: RunConfig, spec: PixelSpec, splits: Splits, kernels: Kernels, seeds: int, console: Console
) -> Screened:
    name, size = config.backbone.name, config.image_size
    if kernels == "imagenet" and not BACKBONES[name].imagenet:
        return Screened(name, kernels, size, problem="there are no ImageNet weights for it")
    labels = splits.validation.labels
    accuracies: list[float] = []
    cost = None
    output_dir = Path(config.output_dir)
    mean = mean_to_subtract(config.data.mean_subtraction, splits.train)
    try:
        # Not the run's own store: what random kernels make of pictures is of no use to any run.
        with (
            tempfile.TemporaryDirectory(prefix=f".{config.name}-", dir=output_dir) as folder,
            Store(Path(folder), config.cache.max_bytes, console.warn) as store,
            console.bar(f"{name}, {KERNELS[kernels]}", seeds, unit="seeds") as advance,
        ):
            pictures = Pictures.of(config, splits, spec, store)
            for seed in range(config.seed, config.seed + seeds):
                reproducible(seed)
                chosen = BackboneConfig(name=name, weights=kernels, options=config.backbone.options)
                backbone = weights.load(chosen, size, output_dir)
                network = model.build(backbone, BACKBONES[name], mean, config.head, len(splits.classes))
                accuracy, seconds = _head_on(network, config, replace(pictures, seed=seed))
                accuracies.append(accuracy)
                cost = cost or _cost(backbone, seconds)
                advance(1, note=f"validation accuracy {np.mean(accuracies):.3f}")
    except DataError:
        raise
    except GraftError as error:
        return Screened(name, kernels, size, problem=str(error))
    commonest = float(np.bincount(labels).max() / len(labels))
    return Screened(name, kernels, size, tuple(accuracies), len(labels), commonest, cost)


def _cost(backbone: keras.Model, seconds: float) -> Cost:
    sizes = inspection.total(inspection.inspect(backbone))
    return Cost(backbone.count_params(), sizes.multiply_adds, seconds)


def _head_on(network: Network, config: RunConfig, pictures: Pictures) -> tuple[float, float]:
    """Trains a network's head alone: its validation accuracy, and the seconds that the backbone takes for one
    picture."""
    (phase,) = config.phases
    # In full: what layers on layers of random kernels leave may be too small for half precision.
    pictures = replace(pictures, cache=Cache(use="always", dtype="float32", max_bytes=config.cache.max_bytes))
    features, seconds = _features(network, phase, pictures)
    network = replace(network, head=_standardised(network.head, features))
    history = finetune.finetune(network, [phase], pictures, None, Console(quiet=True), on_epoch=lambda _: None)
    return history[-1].validation_accuracy, seconds


def _features(network: Network, phase: Phase, pictures: Pictures) -> tuple[np.ndarray, float]:
    """float32 [N, D] of the training pictures, and the seconds that one takes. Both splits' are in the store then."""
    train, console = pictures.train, Console(quiet=True)
    views = Views(Augment(), train.image_shape)
    frozen = Frozen(
        model.divide(network, phase), views, "float32", pictures.settings, pictures.store, train, console
    )  # fmt: skip
    wanted = [
        (split, np.arange(len(split)), np.full(len(split), PLAIN, np.int32)) for split in (train, pictures.validation)
    ]
    frozen.keep(wanted, uses=sum(len(rows) for _, rows, _ in wanted) * phase.epochs, always=True)
    if frozen.kept:
        return frozen.read(*wanted[0]), frozen.seconds
    with closing(train.stream(wanted[0][1], 64)) as batches:
        computed = [frozen.compute(images.astype(np.float32)) for _, images in batches]
    return np.concatenate(computed), frozen.seconds


def _standardised(head: keras.Model, features: np.ndarray) -> keras.Model:
    """A head above features of mean 0 and variance 1, as the training pictures' are: float32 [N, D].

    Batch normalisation in a network that never trained has statistics 0 and 1 and does nothing, so that features may be
    of any size, and one learning rate would not suit all networks.
    """
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    varies = deviation > _ALIKE * np.abs(features).max(axis=0)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    inputs = keras.Input(features.shape[1:], name="features")
    standard = keras.layers.Rescaling(scale.tolist(), (-mean * scale).tolist(), name="standardised")(inputs)
    return keras.Model(inputs, head(standard), name="standardised_head")


# ---------------------------------------------------------------------------------------------------------------- page


def write_page(path: Path, config: RunConfig, rows: Sequence[Screened]) -> None:
    """Writes screen.html into an existing folder: the networks ranked by each kind of kernels, and what they cost."""
    tables = []
    for kind, title in KERNELS.items():
        if of_kind := ranked([row for row in rows if row.kernels == kind]):
            with pages.drawing():
                chart = _chart(of_kind, title)
            tables.append((title, of_kind, chart, told(of_kind)))
    pages.write(path, "screen.html", name=config.name, tables=tables, phase=config.phases[0], warning=few(config, rows))


def _chart(rows: Sequence[Screened], title: str) -> pages.Chart | None:
    scored = [row for row in rows if row.accuracies]
    if not scored:
        return None
    figure = pages.figure(6, 1.4 + 0.42 * len(scored))
    axes = figure.add_subplot()
    axes.set_title("Validation accuracy")
    for place, row in enumerate(scored):
        low, high = row.interval or (row.mean, row.mean)
        axes.plot([low, high], [place, place], color=pages.LINE, linewidth=8, solid_capstyle="butt")
        axes.plot(row.accuracies, [place] * len(row.accuracies), "o", color=pages.SOFT, markersize=4)
        axes.plot([row.mean], [place], "D", color=pages.BLUE, markersize=6)
    axes.axvline(scored[0].commonest, color=pages.ORANGE, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(scored)), [pages.short(row.backbone) for row in scored])
    axes.set_ylim(len(scored) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    words = "; ".join(f"{row.backbone} {row.mean:.3f}" for row in scored)
    caption = (
        "Diamond: mean over seeds; bar: its 95 % interval; dots: single seeds. Dashed: always answering the commonest "
        "class."
    )
    return pages.Chart(figure, caption, f"Validation accuracy of a head on {title}, best first: {words}.")
