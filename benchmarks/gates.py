"""How often the promotion gate is right, on simulated champions and challengers whose true accuracies are known.

    python -m benchmarks.gates

prints how often challengers are promoted that are no better, that are better by five points, and that broke one class
while the total improved: 200 pairs of models for each row, on 1000 test pictures, with the config's default rules. Six
minutes on two cores.

A picture has a difficulty, which both models feel, and each model has luck of its own with it: it is right where

    sqrt(correlation) * difficulty + sqrt(1 - correlation) * luck < the threshold that gives its accuracy

with both standard normal. A correlation of 0.8 makes two models of 75 % accuracy agree on 84 % of the pictures in being
right; models that have nothing in common would on 63 %. Networks agree far more than that (Mania et al., "Model
similarity mitigates test set overuse", NeurIPS 2019), and a model that is retrained most of all; so 0.5 is cautious and
0 is a bound. A model's confidence is the probability that it is right at that difficulty, so it is calibrated.

Shape letters: N pictures, C classes.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import norm

from pipeline.config import Gate
from pipeline.gate import Decision, decide
from pipeline.paired import Answers

PICTURES = 1000
PAIRS = 200
GAIN = 0.05


@dataclass(frozen=True)
class World:
    """What a pair of models is drawn from.

    Attributes:
        accuracy: the champion's true accuracy, in every class.
        correlation: of the two models' luck with a picture.
        classes: how many.
        skewed: each class has 1/k of the commonest's pictures, k its rank; else all have as many, by chance.
        spread: standard deviation of the challenger's true accuracy around what it should be.
    """

    accuracy: float
    correlation: float
    classes: int
    skewed: bool = False
    spread: float = 0.0


CLASSES = (2, 10, 100)
WORLDS = [
    *(World(*each) for each in product((0.7, 0.8, 0.9), (0.5, 0.8), CLASSES)),
    *(World(0.85, 0.8, classes, skewed=True) for classes in CLASSES),
]
"""Where the targets hold."""

ROWS: dict[str, list[World]] = {
    **{
        f"accuracy {accuracy:.0%}, correlation {correlation:g}": [World(accuracy, correlation, c) for c in CLASSES]
        for accuracy, correlation in product((0.7, 0.8, 0.9), (0.8, 0.5, 0.0))
    },
    "accuracy 85%, correlation 0.8, skewed classes": [World(0.85, 0.8, c, skewed=True) for c in CLASSES],
}
VARYING = [World(0.85, 0.8, classes, spread=0.01) for classes in CLASSES]

BROKEN: dict[str, tuple[World, float]] = {
    "10 classes, one 40 points worse": (World(0.85, 0.8, 10), 0.40),
    "10 classes, one 30 points worse": (World(0.85, 0.8, 10), 0.30),
    "10 classes, one 20 points worse": (World(0.85, 0.8, 10), 0.20),
    "30 classes, one 60 points worse": (World(0.85, 0.8, 30), 0.60),
    "100 classes, one never found": (World(0.85, 0.8, 100), 0.85),
}


def simulate(rng: np.random.Generator, world: World, new: np.ndarray) -> tuple[Answers, Answers, np.ndarray]:
    """A champion, a challenger and labels int [N].

    Args:
        new: float [C], the challenger's true accuracy in each class.
    """
    c = world.classes
    weights = 1 / np.arange(1, c + 1) if world.skewed else np.ones(c)
    labels = rng.choice(c, PICTURES, p=weights / weights.sum())
    difficulty = rng.normal(size=PICTURES)

    def answers(name: str, accuracy: np.ndarray) -> Answers:
        shared, own = np.sqrt(world.correlation), np.sqrt(1 - world.correlation)
        margin = (norm.ppf(accuracy[labels]) - shared * difficulty) / own
        right = rng.normal(size=PICTURES) < margin
        wrong = (labels + rng.integers(1, c, PICTURES)) % c
        confidence = np.clip(norm.cdf(margin), 1 / c + 0.01, 1)
        probabilities = np.repeat((1 - confidence) / (c - 1), c).reshape(PICTURES, c)
        probabilities[np.arange(PICTURES), np.where(right, labels, wrong)] = confidence
        return Answers(name, probabilities, latency_ms=10.0)

    return answers("the champion", np.full(c, world.accuracy)), answers("the challenger", new), labels


def judge(rng: np.random.Generator, world: World, new: np.ndarray) -> Decision:
    champion, challenger, labels = simulate(rng, world, new)
    names = [f"class {k}" for k in range(world.classes)]
    return decide(champion, challenger, labels, names, Gate(), seed=int(rng.integers(2**31)))


def false_promotions(pairs: int = PAIRS, seed: int = 0, worlds: list[World] = WORLDS) -> float:
    """Share of challengers that are promoted though they are no better: made as the champion was, in all worlds."""
    rng = np.random.default_rng(seed)
    mistakes = 0
    for k in range(pairs):
        world = worlds[k % len(worlds)]
        true = world.accuracy + world.spread * rng.normal()
        promoted = judge(rng, world, np.full(world.classes, true)).promote
        mistakes += promoted and true <= world.accuracy
    return mistakes / pairs


def true_promotions(pairs: int = PAIRS, seed: int = 0, worlds: list[World] = WORLDS) -> float:
    """Share of challengers that are promoted of those that are better by five points, in all worlds."""
    rng = np.random.default_rng(seed)
    chosen = [worlds[k % len(worlds)] for k in range(pairs)]
    return sum(judge(rng, world, np.full(world.classes, world.accuracy + GAIN)).promote for world in chosen) / pairs


def broken_class(
    pairs: int = PAIRS, seed: int = 0, world: World = World(0.85, 0.8, 10), drop: float = 0.4, gain: float = 0.03
) -> float:
    """Share of challengers that are refused with the broken class, and no other, named in the reason.

    Args:
        drop: what one class loses of its accuracy.
        gain: what the total wins all the same, since the other classes are better.
    """
    rng = np.random.default_rng(seed)
    c = world.classes
    caught = 0
    for k in range(pairs):
        broken = k % c
        new = np.full(c, world.accuracy + (c * gain + drop) / (c - 1))
        new[broken] = world.accuracy - drop
        assert new.max() <= 1
        decision = judge(rng, world, new)
        failed = [check.name for check in decision.checks if not check.passed and check.name.startswith("class ")]
        caught += (
            not decision.promote and failed == [f"class class {broken}"] and f"class {broken} lost" in decision.reason
        )
    return caught / pairs


def main() -> None:
    print(f"{PAIRS} pairs a row, {PICTURES} pictures, default rules\n")
    print(f"{'':48}{'no better:':>14}{'5 points better:':>20}")
    print(f"{'':48}{'promoted':>14}{'promoted':>20}")
    for title, worlds in {"all of WORLDS": WORLDS, **ROWS}.items():
        false, true = false_promotions(worlds=worlds), true_promotions(worlds=worlds)
        print(f"{title:48}{false:14.1%}{true:20.1%}", flush=True)
    print(f"{'accuracy 85% ± 1 point, correlation 0.8':48}{false_promotions(worlds=VARYING):14.1%}")
    print("\none class broken, total 3 points better: refused, naming it")
    for title, (world, drop) in BROKEN.items():
        print(f"{title:48}{broken_class(world=world, drop=drop):14.1%}", flush=True)


if __name__ == "__main__":
    main()
