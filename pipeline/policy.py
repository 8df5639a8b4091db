"""Policy as pure functions of numbers: how much to train, and whether to keep activations.

Few pictures: fix more weights. Many: train more of them, always at a learning rate far below the head's. How unlike
the pretraining data the pictures are cannot be told from their number; who knows it can unfreeze more.
"""

from dataclasses import dataclass

from pipeline.config import SGD, Augment, Cosine, EarlyStopping, Phase, Plateau, Share, default_phases


@dataclass(frozen=True)
class Suggestion:
    """What to train and how.

    Attributes:
        phases: for the config, in order.
        augment: for the config.
        views: for the config: how many of a picture, so that their activations can be kept; None where no layers stay
            frozen for long enough to gain by it.
        reason: why, in one sentence for the user.
    """

    phases: list[Phase]
    augment: Augment
    views: int | None
    reason: str


@dataclass(frozen=True)
class Tier:
    """What datasets of at least this size get, unless a later tier fits them too."""

    pictures: int
    pictures_per_class: int
    phases: list[Phase]
    augment: Augment
    views: int | None
    reason: str


def _head(epochs: int) -> Phase:
    return Phase(epochs=epochs, learning_rate=5e-3, unfreeze="head", schedule=Cosine())


# From fewest to most pictures; each unfreezes at least what the one before does.
TIERS = [
    Tier(
        pictures=0,
        pictures_per_class=0,
        phases=[_head(30)],
        augment=Augment(flip="horizontal", crop_scale=0.7, rotation=10, color=0.1),
        views=8,
        reason="too few to change pretrained layers without overfitting: the head alone learns, on augmented pictures",
    ),
    Tier(
        pictures=0,
        pictures_per_class=20,
        phases=default_phases(),
        augment=Augment(flip="horizontal"),
        views=8,
        reason="enough to train the head and then adapt the topmost layers gently",
    ),
    Tier(
        pictures=1_000,
        pictures_per_class=200,
        phases=[
            _head(5),
            Phase(
                epochs=15,
                learning_rate=1e-4,
                unfreeze=Share(fraction=0.3),
                schedule=Cosine(),
                early_stopping=EarlyStopping(patience=5),
            ),
        ],
        augment=Augment(flip="horizontal", crop_scale=0.5),
        views=8,
        reason="hundreds a class can move the topmost layers further: more epochs, stronger augmentation",
    ),
    Tier(
        pictures=10_000,
        pictures_per_class=200,
        phases=[
            _head(3),
            Phase(
                epochs=12,
                learning_rate=1e-4,
                unfreeze=Share(fraction=0.5),
                schedule=Cosine(warmup_epochs=1),
                early_stopping=EarlyStopping(patience=3),
            ),
        ],
        augment=Augment(flip="horizontal", crop_scale=0.5, color=0.1),
        views=8,
        reason="tens of thousands can retrain half the network",
    ),
    Tier(
        pictures=200_000,
        pictures_per_class=200,
        phases=[
            _head(1),
            Phase(
                epochs=10,
                learning_rate=1e-4,
                unfreeze="all",
                schedule=Cosine(warmup_epochs=1),
                early_stopping=EarlyStopping(patience=3),
            ),
        ],
        augment=Augment(flip="horizontal", crop_scale=0.4, color=0.2),
        views=None,
        reason="hundreds of thousands can retrain every layer, starting from the pretrained weights",
    ),
]


def suggest(n_images: int, n_classes: int, pretrained: bool = True) -> Suggestion:
    """How to train on a dataset of this size.

    Args:
        n_images: pictures of all splits together.
        n_classes: at least 1.
        pretrained: whether the backbone starts from pretrained weights. Without them everything has to be trained,
            however few pictures there are.
    """
    if not pretrained:
        return _FROM_SCRATCH
    per_class = n_images / n_classes
    tier = [t for t in TIERS if n_images >= t.pictures and per_class >= t.pictures_per_class][-1]
    size = f"{n_images:,} pictures, about {per_class:,.0f} a class"
    return Suggestion(tier.phases, tier.augment, tier.views, f"{size}: {tier.reason}.")


# AlexNet's recipe (Krizhevsky et al., 2012).
_FROM_SCRATCH = Suggestion(
    phases=[
        Phase(
            epochs=90,
            learning_rate=1e-2,
            unfreeze="all",
            optimizer=SGD(momentum=0.9),
            schedule=Plateau(patience=5),
            weight_decay=5e-4,
            backbone_mode="training",
        )
    ],
    augment=Augment(flip="horizontal", crop_scale=0.5, color=0.2),
    views=None,
    reason="There are no pretrained weights, so every layer learns from scratch, at a much higher learning rate.",
)


@dataclass(frozen=True)
class Keeping:
    """Whether to keep activations, and why.

    Attributes:
        worth_it: whether they fit, and reading one is quicker than computing it.
        arithmetic: how that was found, in one line for the user.
    """

    worth_it: bool
    arithmetic: str


def no_room(entries: int, size: int, room: int) -> Keeping | None:
    """Why so many activations cannot be kept; None where they fit. Arguments as in `keeping`."""
    # Keys, and pages that are not full, take up to two fifths as much again.
    if entries * size * 1.4 <= room:
        return None
    return Keeping(False, f"{_sizes(entries, size, room)}: too little, so they are computed on the fly")


def keeping(
    entries: int, missing: int, uses: int, size: int, room: int, compute_seconds: float, store_seconds: float
) -> Keeping:
    """Whether a phase reads activations, for which there is room, from the store, or computes them on the fly.

    Each missing one is computed once either way. Kept, it costs a write and its reads; it has paid for itself when it
    is used once more, in this phase or a later run, if the store is quicker than the layers.

    Args:
        entries: how many activations the phase needs.
        missing: how many of them are not in the store.
        uses: how often the phase reads one.
        size: of one, in bytes.
        room: what the store can hold, in bytes.
        compute_seconds: augmenting a picture and computing one.
        store_seconds: writing and reading one.
    """
    kept = missing * compute_seconds + uses * store_seconds
    on_the_fly = uses * compute_seconds
    if store_seconds >= compute_seconds:
        verdict = "the store is slower, so they are computed on the fly"
    else:
        verdict = "they are kept" if kept < on_the_fly else "they are kept, for later runs"
    return Keeping(
        store_seconds < compute_seconds,
        f"{_sizes(entries, size, room)}; one is computed in {compute_seconds * 1e3:.2f} ms, written and read in "
        f"{store_seconds * 1e3:.2f} ms. Computing {missing:,} and reading {uses:,} takes {kept:.1f} s, computing all "
        f"{uses:,} {on_the_fly:.1f} s: {verdict}",
    )


def _sizes(entries: int, size: int, room: int) -> str:
    return f"{entries:,} activations of {_bytes(size)} are {_bytes(entries * size)}, there is room for {_bytes(room)}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
