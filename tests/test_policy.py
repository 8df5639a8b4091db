from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SGD, Phase, Plateau, Share
from pipeline.policy import TIERS, keeping, no_room, suggest


def unfrozen(phase: Phase) -> float:
    """Share of the backbone's layers that train."""
    match phase.unfreeze:
        case "head":
            return 0
        case Share(fraction=fraction):
            return fraction
        case "all":
            return 1
    raise AssertionError(phase.unfreeze)


def deepest(n_images: int, n_classes: int) -> float:
    return max(unfrozen(phase) for phase in suggest(n_images, n_classes).phases)


@pytest.mark.parametrize(
    ("n_images", "n_classes", "deepest_phase"),
    [
        (20, 2, "head"),
        (1_900, 100, "head"),  # 19 a class, however many there are
        (397, 2, Share(fraction=0.3)),
        (3_670, 5, Share(fraction=0.3)),
        (23_262, 2, Share(fraction=0.5)),
        (20_000, 1_000, Share(fraction=0.3)),  # many pictures, few a class
        (1_281_167, 1_000, "all"),
    ],
)
def test_known_datasets(n_images, n_classes, deepest_phase):
    assert suggest(n_images, n_classes).phases[-1].unfreeze == deepest_phase


@given(st.integers(1, 2_000_000), st.integers(0, 2_000_000), st.integers(2, 2_000))
def test_more_pictures_never_unfreeze_less(n_images, more, n_classes):
    assert deepest(n_images + more, n_classes) >= deepest(n_images, n_classes)


@given(st.integers(1, 2_000_000), st.integers(2, 2_000), st.integers(0, 2_000))
def test_more_classes_never_unfreeze_more(n_images, n_classes, more):
    assert deepest(n_images, n_classes + more) <= deepest(n_images, n_classes)


def test_tiers_go_from_small_to_large():
    for smaller, larger in pairwise(TIERS):
        assert (smaller.pictures, smaller.pictures_per_class) < (larger.pictures, larger.pictures_per_class)


@pytest.mark.parametrize("tier", TIERS)
def test_the_head_learns_first_and_pretrained_layers_far_slower(tier):
    head, *rest = tier.phases
    assert head.unfreeze == "head"
    assert all(phase.learning_rate <= head.learning_rate / 10 for phase in rest)
    assert all(1e-5 <= phase.learning_rate <= 1e-4 for phase in rest)
    assert tier.augment.flip == "horizontal"


def test_the_reason_names_the_numbers():
    assert suggest(1_234, 10).reason == (
        "1,234 pictures, about 123 a class: enough to train the head and then adapt the topmost layers gently."
    )


def test_without_pretrained_weights_everything_is_trained():
    (phase,) = suggest(100, 2, pretrained=False).phases
    assert (phase.unfreeze, phase.learning_rate, phase.weight_decay) == ("all", 1e-2, 5e-4)
    assert phase.optimizer == SGD(momentum=0.9)
    assert isinstance(phase.schedule, Plateau)


KEEPING = {"entries": 1_000, "missing": 400, "uses": 5_000, "size": 25_088, "room": 20_000_000_000}
FLY = "so they are computed on the fly"


def decided(compute_seconds=1e-3, store_seconds=1e-4, **changes):
    numbers = KEEPING | changes
    refusal = no_room(numbers["entries"], numbers["size"], numbers["room"])
    return refusal or keeping(**numbers, compute_seconds=compute_seconds, store_seconds=store_seconds)


def test_activations_are_kept_where_they_fit_and_the_store_is_quicker():
    decision = decided()
    assert decision.worth_it
    assert decision.arithmetic == (
        "1,000 activations of 25.1 kB are 25 MB, there is room for 20,000 MB; one is computed in 1.00 ms, written and "
        "read in 0.10 ms. Computing 400 and reading 5,000 takes 0.9 s, computing all 5,000 5.0 s: they are kept"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"store_seconds": 1e-3}, f"the store is slower, {FLY}"),
        ({"store_seconds": 0.9999e-3}, "they are kept, for later runs"),
        ({"room": 1_400 * 25_088 - 1}, f"there is room for 35 MB: too little, {FLY}"),
        ({"room": 1_400 * 25_088 + 1}, "they are kept"),
        ({"room": 0}, f"there is room for 0.0 kB: too little, {FLY}"),
        # What a phase does not use again, a later one does.
        ({"uses": 1_000, "missing": 1_000}, "they are kept, for later runs"),
    ],
)
def test_activations_are_computed_on_the_fly_where_they_do_not_fit_or_the_store_is_slower(changes, why):
    decision = decided(**changes)
    assert decision.worth_it == why.startswith("they are kept")
    assert decision.arithmetic.endswith(why)
