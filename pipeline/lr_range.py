"""The learning-rate range test: what a phase's loss does while its learning rate rises from step to step.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3; the range, the number of steps and the
point where it stops are those of fastai's `lr_find` (Howard and Gugger, "fastai: A Layered API for Deep Learning",
2020).

Batches differ in how hard they are, by more than a fine-tuned network's loss still falls. So the same batches, with the
same augmentation and dropout, pass the unchanged weights as well, and what counts is the ratio: while the learning rate
is too low to change anything it is exactly 1.

Shape letters: n steps.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import finetune, model, pages
from pipeline.backbones import BACKBONES
from pipeline.config import Constant, Phase, RunConfig
from pipeline.console import Advance, Console
from pipeline.errors import TrainingError
from pipeline.feed import Batch, Feed, Pictures
from pipeline.model import Network
from pipeline.prepared import prepared

STEPS = 100
LOWEST, HIGHEST = 1e-7, 10.0
DIVERGED = 4.0
"""The test stops where the loss is this many times the lowest before it."""
MOMENTUM = 0.8
"""Of the moving averages that smooth the loss: about five steps, less than half a power of ten of the learning rate."""
BEGUN = 0.05
"""The loss has begun to fall where this share of its whole fall is done."""
LEAST_FALL = 0.02
"""A loss that falls by less than this share tells of no learning rate."""


@dataclass(frozen=True, eq=False)
class RangeTest:
    """One phase's range test, of n steps.

    Attributes:
        number: the phase's, counted from 1.
        phase: as configured.
        rates: float64 [n], rising: the learning rate of each step. Of a phase with `layer_decay`, the head's.
        losses: float64 [n], in nats: the loss of each step's batch as the phase trains on it, with its augmentation,
            label smoothing and class weights, before the step changes the weights.
        unchanged: float64 [n]: likewise, of the weights as they were before the test.
        diverged: the learning rate at which the loss was DIVERGED times its lowest, or no longer a number; None where
            it never was.
        passes: how often the training pictures were gone through.
    """

    number: int
    phase: Phase
    rates: np.ndarray
    losses: np.ndarray
    unchanged: np.ndarray
    diverged: float | None
    passes: float

    @property
    def curve(self) -> np.ndarray:
        """float64 [n], in nats: the loss, smoothed, as it would be were all batches equally hard."""
        return _curve(self.losses, self.unchanged)

    @property
    def why_not(self) -> str | None:
        """Why there is no suggestion; None where there is one."""
        if len(self.losses) < 2:
            return "the loss is not a finite number from the start: what trains is not in a state to learn from"
        before, lowest = self.unchanged.mean(), self.curve.min()
        if not before - lowest > LEAST_FALL * before:
            return f"the loss never fell by {LEAST_FALL:.0%}: {before:.3g} at first, {lowest:.3g} at the lowest"
        return None

    @property
    def minimum(self) -> float | None:
        """The learning rate where the loss is lowest; None without a suggestion."""
        return None if self.why_not else float(self.rates[self.curve.argmin()])

    @property
    def suggestion(self) -> float | None:
        """The middle of the valley, on the logarithmic scale: from where the loss begins to fall to where it is lowest.

        fastai's `valley` rule, but for where the valley begins. There it is the longest run of falling losses, which
        ends in the noise between batches; here there is none, and BEGUN says it.
        """
        if self.why_not:
            return None
        curve = self.curve
        end = int(curve.argmin())
        begun = self.unchanged.mean() - BEGUN * (self.unchanged.mean() - curve[end])
        start = int(np.flatnonzero(curve[: end + 1] > begun)[-1]) if (curve[: end + 1] > begun).any() else 0
        return float(math.sqrt(self.rates[start] * self.rates[end]))

    @property
    def diverges(self) -> bool:
        """Whether the loss diverges at the config's own learning rate."""
        return self.diverged is not None and self.phase.learning_rate >= self.diverged

    @property
    def verdict(self) -> str:
        """On the config's own learning rate, in words."""
        rate, suggestion, minimum = self.phase.learning_rate, self.suggestion, self.minimum
        if self.diverges:
            return "the loss diverges there"
        if suggestion is None or minimum is None:
            return "not told by this test"
        if rate > minimum:
            return "beyond the lowest loss: too high"
        factor = max(rate / suggestion, suggestion / rate)
        if factor < 3:  # Half a power of ten: less than seeds and batch orders move the suggestion by.
            return "as good as the suggestion"
        return f"{factor:.0f} times {'higher' if rate > suggestion else 'lower'} than the suggestion"

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "phase": self.number, "configured": self.phase.learning_rate, "suggested": self.suggestion,
            "why_not": self.why_not, "minimum": self.minimum, "diverged": self.diverged, "passes": self.passes,
            "rates": self.rates.tolist(), "losses": self.losses.tolist(), "curve": self.curve.tolist(),
        }  # fmt: skip


def tests_of(config: RunConfig, console: Console) -> Generator[RangeTest, None, None]:
    """Tests every phase of a config on the pictures and weights that a run would train with. It leaves no run behind.

    Raises:
        GraftError: as `run`, up to the training of the last phase but one.
    """
    with prepared(config, console) as p:
        row, classes = BACKBONES[config.backbone.name], len(p.splits.classes)
        network = model.build(p.backbone, row, p.mean, config.head, classes)
        yield from range_tests(network, config.phases, Pictures.of(config, p.splits, p.spec, p.store), console)


def range_tests(
    network: Network, phases: list[Phase], pictures: Pictures, console: Console
) -> Generator[RangeTest, None, None]:
    """Tests each phase on the weights that the phases before it leave, which are trained as a run trains them.

    Args:
        network: as it is before any training. It ends as the last phase but one leaves it.
        phases: of the config.
        pictures: to learn from. Activations come from their store and go to it as in a run.
        console: gets a bar per test, and what `finetune` says.

    Raises:
        TrainingError: a phase before the last one diverges at its own learning rate, by its test or when it is trained.
    """
    for number in range(len(phases)):
        test = range_test(network, phases[number], number, pictures, console)
        yield test
        if number + 1 < len(phases):
            if test.diverges:
                raise TrainingError(
                    f"Phase {number + 2} cannot be tested: it starts from what phase {number + 1} leaves, which at its "
                    f"learning rate of {test.phase.learning_rate:g} diverges. That must be below "
                    f"{test.diverged:.2g}. Set phases.{number}.learning_rate lower, and test again."
                )
            finetune.finetune(network, phases, pictures, None, console, on_epoch=lambda _: None, only=number)


def range_test(network: Network, phase: Phase, number: int, pictures: Pictures, console: Console) -> RangeTest:
    """Tests one phase, counted from 0, and puts the weights back as they were.

    Everything is the phase's own, but its schedule: up to STEPS of its batches, the learning rate rising from LOWEST to
    HIGHEST by the same factor each. Where an epoch has fewer, the next one's follow.
    """
    division = model.divide(network, phase)
    optimizer = finetune.optimizer_of(division, phase.model_copy(update={"schedule": Constant()}), pictures)
    step = finetune.compiled_step(division, optimizer, phase, pictures)
    # The seeds of dropout are among the network's.
    as_it_was = [(variable, variable.numpy()) for variable in network.model.variables + optimizer.variables]

    def losses_at(rates: np.ndarray, feed: Feed, advance: Advance, ended: Callable[[list[float]], bool]) -> list[float]:
        losses: list[float] = []
        with closing(_batches(feed)) as batches:
            for rate, batch in zip(rates.tolist(), batches, strict=False):
                optimizer.learning_rate = rate
                loss, _, size = (float(total) for total in step(*batch))
                losses.append(loss / size)
                advance()
                if ended(losses):
                    break
        for variable, value in as_it_was:
            variable.assign(value)
        return losses

    def diverged(losses: list[float]) -> bool:
        curve = _curve(losses, unchanged[: len(losses)])
        return not math.isfinite(losses[-1]) or bool(curve[-1] > DIVERGED * curve.min())

    rates = np.geomspace(LOWEST, HIGHEST, STEPS)
    losses: list[float] = []
    with (
        closing(Feed(pictures, division, number, phase.epochs, console)) as feed,
        console.bar(f"  learning rates for phase {number + 1}", 2 * STEPS, unit="steps") as advance,
    ):
        feed.prepare()
        unchanged = losses_at(np.zeros(STEPS), feed, advance, lambda losses: not math.isfinite(losses[-1]))
        if math.isfinite(unchanged[-1]):
            losses = losses_at(rates, feed, advance, diverged)
    ended = bool(losses) and diverged(losses)
    tried = len(losses) - (ended and not math.isfinite(losses[-1]))
    return RangeTest(
        number=number + 1,
        phase=phase,
        rates=rates[:tried],
        losses=np.array(losses[:tried]),
        unchanged=np.array(unchanged[:tried]),
        diverged=float(rates[len(losses) - 1]) if ended else None,
        passes=len(losses) / -(-len(pictures.train) // pictures.data.batch_size),
    )


def _batches(feed: Feed) -> Generator[Batch, None, None]:
    """Those of the phase's epochs in turn, without end."""
    for epoch in count():
        with closing(feed.epoch(epoch)) as batches:
            yield from batches


def _curve(losses: Sequence[float] | np.ndarray, unchanged: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64 [n]: the loss, smoothed, as it would be were all batches equally hard."""
    easy = _average(unchanged)
    # Where the unchanged weights make no mistake at all, nothing is left to fall.
    ratio = np.divide(_average(losses), easy, out=np.ones_like(easy), where=easy > 0)
    return np.asarray(ratio * (sum(unchanged) / max(len(unchanged), 1)))


def _average(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64 [n]: an exponential moving average, corrected for its start (Kingma and Ba, "Adam", 2015)."""
    averages, average = [], 0.0
    for steps, value in enumerate(values, start=1):
        average = MOMENTUM * average + (1 - MOMENTUM) * float(value)
        averages.append(average / (1 - MOMENTUM**steps))
    return np.array(averages)


# ---------------------------------------------------------------------------------------------------------------- page


def write_page(path: Path, config: RunConfig, tests: Sequence[RangeTest]) -> None:
    """Writes lr.html into an existing folder: each phase's curve, and how to read it."""
    with pages.drawing():
        charts = [_chart(test) for test in tests]
    pages.write(
        path, "lr.html", name=config.name, tests=list(zip(tests, charts, strict=True)),
        settings=" ".join(f"--set {setting}" for setting in settings(tests)),
        steps=STEPS, lowest=LOWEST, highest=HIGHEST, diverged=DIVERGED,
    )  # fmt: skip


def settings(tests: Sequence[RangeTest]) -> list[str]:
    """What gives a config the suggested learning rates, as KEY=VALUE."""
    return [
        f"phases.{test.number - 1}.learning_rate={test.suggestion:.2g}" for test in tests if test.suggestion is not None
    ]


def _chart(test: RangeTest) -> pages.Chart:
    figure = pages.figure(6, 4.4)
    axes = figure.add_subplot()
    axes.set_title(f"Phase {test.number}")
    axes.set_xscale("log")
    axes.set_xlim(LOWEST, HIGHEST)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, nats")
    words = f"Phase {test.number}, loss against learning rate: "
    caption = f"{test.phase.trains}, {test.phase.optimizer.name}. "
    if len(test.rates):
        before, curve = float(test.unchanged.mean()), test.curve
        nothing = np.full(len(test.losses), np.nan)
        single = before * np.divide(test.losses, test.unchanged, out=nothing, where=test.unchanged > 0)
        axes.scatter(test.rates, single, s=12, color=pages.SKY, linewidths=0, label="a batch")
        axes.plot(test.rates, curve, color=pages.BLUE, label="smoothed")
        axes.set_ylim(0, 2 * before)
        words += f"{before:.3g} nats before any training, {curve.min():.3g} at the lowest; "
    configured = test.phase.learning_rate
    axes.axvline(configured, color=pages.ORANGE, label=f"configured: {configured:.2g}")
    if test.suggestion is None or test.minimum is None:
        words += "no suggestion"
        caption += f"No suggestion: {test.why_not}."
    else:
        axes.axvline(test.suggestion, color=pages.GREEN, linestyle="--", label=f"suggested: {test.suggestion:.2g}")
        axes.axvline(test.minimum, color=pages.SOFT, linewidth=1, linestyle=":", label=f"lowest: {test.minimum:.2g}")
        words += f"suggested {test.suggestion:.2g}"
        caption += f"Suggested: {test.suggestion:.2g}. The config's {configured:.2g}: {test.verdict}."
    if test.diverged is not None:
        words += f"; diverged at {test.diverged:.2g}"
    figure.legend(loc="outside lower center", ncols=2)
    return pages.Chart(figure, caption, f"{words}.")
