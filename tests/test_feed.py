"""What training reads: the same with a store and without, each view drawn by the seed, whatever happens to the disk."""

import functools
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import keras
import numpy as np
import pytest

from pipeline import finetune, trunk
from pipeline.config import Augment, Blocks, Cache, Head
from pipeline.feed import Feed
from pipeline.model import divide
from tests.networks import QUIET, InMemory, data, network, phase, pictures, same, split, values
from tests.stores import Counting, Failing, Heard

FLOAT32 = Cache(use="always", dtype="float32")
FLOAT16 = Cache(use="always")
OFF = Cache(use="off")
AUGMENT = Augment(flip="both", crop_scale=0.5)
PHASES = (
    phase(epochs=2, learning_rate=1e-3),
    phase(epochs=2, learning_rate=1e-4, unfreeze=Blocks(blocks=1)),
)
GENTLE = (phase(epochs=2, learning_rate=1e-5, unfreeze=Blocks(blocks=1)),)


@pytest.fixture
def store(tmp_path):
    with Counting(tmp_path) as store:
        yield store


def trained(store, cache, name="lenet5", options=None, size=32, phases=PHASES, console=QUIET, on_epoch=None, **changes):
    """The curve and the final weights of a run on 25 pictures with three views each; the last batch is of one."""
    train, validation = split(25, size=size), split(12, seed=1, size=size, name="validation")
    net = network(name, options, Head(dropout=0.3), size=size)
    awake(net, train)
    read = pictures(train, validation, data(**{"augment": AUGMENT, "views": 3, **changes}), cache, store)
    history = finetune.finetune(net, list(phases), read, None, console, on_epoch or (lambda _: None))
    return [(epoch.loss, epoch.validation_loss) for epoch in history], values(net.model.variables)


def awake(net, pictures):
    """Gives batch normalisation the pictures' statistics: with others, deep random layers put out next to nothing."""
    norms = [layer for layer in net.backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        net.backbone(net.normalise(pictures.images(np.arange(len(pictures)))), training=True)


ROWS = [
    pytest.param("lenet5", {}, 32, PHASES, id="lenet5"),
    pytest.param("mobilenet", {"alpha": 0.25}, 32, PHASES, id="mobilenet", marks=pytest.mark.slow),
    pytest.param("mobilenet_v2", {"alpha": 0.35}, 32, PHASES, id="mobilenet_v2", marks=pytest.mark.slow),  # sums
    pytest.param("inception_v3", {}, 75, GENTLE, id="inception_v3", marks=pytest.mark.slow),  # branches
]


@pytest.mark.parametrize(("name", "options", "size", "phases"), ROWS)
def test_the_curve_and_the_weights_are_the_same_with_a_store_and_without(name, options, size, phases, store):
    """Exactly in float32; nearly in float16, and then exactly whether its roundings come out of the store or not."""
    without, weights = trained(None, OFF, name, options, size, phases)
    assert len({loss for loss, _ in without}) == len(without)  # It learns, so that there is something to compare.

    exact, exact_weights = trained(store, FLOAT32, name, options, size, phases)
    assert exact == without
    assert same(exact_weights, weights)
    writes = store.writes
    assert writes > 0
    again, again_weights = trained(store, FLOAT32, name, options, size, phases, console=(heard := Heard()))
    assert again == without
    assert same(again_weights, weights)
    assert store.writes == writes
    assert len([line for line in heard.said if "; 100% of 74 activations from the store" in line]) == len(phases)

    kept, kept_weights = trained(store, FLOAT16, name, options, size, phases)
    np.testing.assert_allclose(kept, without, rtol=5e-3)
    rounded, rounded_weights = trained(None, Cache(use="auto"), name, options, size, phases)
    assert kept == rounded
    assert same(kept_weights, rounded_weights)
    assert kept != without


HEAD = PHASES[:1]


@functools.cache
def on_the_fly(epochs=2):
    """What a head's training has to give, whatever happens to the store."""
    return trained(None, OFF, phases=[phase(epochs=epochs, learning_rate=1e-3)])


def assert_same(one, other):
    assert one[0] == other[0]
    assert same(one[1], other[1])


@pytest.mark.parametrize("augment", [Augment(), Augment(crop_scale=0.5, mixup=0.3)])
def test_without_views_the_curve_is_the_same_too(augment, store):
    without = trained(None, OFF, phases=HEAD, augment=augment, views=None)
    assert_same(trained(store, FLOAT32, phases=HEAD, augment=augment, views=None), without)


def test_where_tensorflow_computes_the_curve_is_the_same_too(monkeypatch, store):
    """A batch of one included, for which TensorFlow has kernels that add in another order."""
    monkeypatch.setattr(trunk, "TOLERANCE", -1.0)
    without = trained(None, OFF, phases=HEAD, console=(heard := Heard()))
    assert any("the frozen layers run on TensorFlow: OpenVINO differs by" in line for line in heard.said)
    assert_same(trained(store, FLOAT32, phases=HEAD), without)
    assert_same(trained(store, FLOAT32, phases=HEAD), without)


def test_what_is_removed_or_damaged_in_mid_phase_is_computed_again(tmp_path):
    warned, writes = [], []
    with Counting(tmp_path, warned.append) as store:

        def meddle(epoch):
            writes.append(store.writes)
            if epoch.epoch == 1:
                assert store.prune(max_bytes=0).entries > 0
            if epoch.epoch == 2:
                with closing(sqlite3.connect(store.path, isolation_level=None)) as db:
                    damaged = db.execute("UPDATE value SET bytes = zeroblob(length(bytes)) WHERE id % 2 = 0").rowcount
                    assert damaged > 0

        assert_same(
            trained(store, FLOAT32, phases=[phase(epochs=4, learning_rate=1e-3)], on_epoch=meddle), on_the_fly(4)
        )
    # What was lost is computed and kept again, once: the removed in the second epoch, the damaged after it.
    assert writes[0] < writes[1] < writes[3]
    assert len(warned) == 1
    assert "damaged entries" in warned[0]


@pytest.mark.parametrize("writes", [0, 2, 4])
def test_a_disk_that_is_full_ends_the_keeping_and_not_the_run(writes, tmp_path):
    """At the trial, at the validation pictures, and in mid-phase when entries have gone."""
    with Failing(tmp_path, writes=writes) as store:
        kept = trained(
            store, FLOAT32, phases=HEAD, console=(heard := Heard()), on_epoch=lambda _: store.prune(max_bytes=0)
        )
    assert_same(kept, on_the_fly())
    assert heard.warned == ["The disk is full. Activations are computed on the fly instead."]


@pytest.mark.parametrize("reads", [1, 6])
def test_a_disk_that_cannot_be_read_ends_the_keeping_and_not_the_run(reads, tmp_path):
    with Failing(tmp_path, reads=reads) as store:
        kept = trained(store, FLOAT32, phases=HEAD, console=(heard := Heard()))
    assert_same(kept, on_the_fly())
    assert heard.warned == ["The disk has gone. Activations are computed on the fly instead."]


class Slow(Counting):
    """Takes longer than any layers here."""

    def write(self, space, entries):
        time.sleep(0.3)
        super().write(space, entries)


class Small(Counting):
    room = 100


@pytest.mark.parametrize(("kind", "words", "tried"), [(Slow, "the store is slower", 16), (Small, "too little", 0)])
def test_what_does_not_pay_is_computed_on_the_fly_unless_always(kind, words, tried, tmp_path):
    with kind(tmp_path) as store:
        for use, written in (("auto", tried), ("always", 36)):
            read = pictures(cache=Cache(use=use), store=store)
            with feed_of(read, console=(heard := Heard())) as feed:
                epoch(feed)
                if use == "auto":
                    assert feed.activations == (24, 0, 0)
            assert len(store.written) == written
            assert any(words in line for line in heard.said) == (use == "auto")  # No reasons for what is not done.


# ---------------------------------------------------------------------------------------------------- what is kept


def epoch(feed, number=0):
    """Features and labels of an epoch, and that every picture counts once."""
    features, labels, counts = zip(*feed.epoch(number), strict=True)
    assert np.concatenate(counts).tolist() == [1.0] * sum(map(len, labels))
    return np.concatenate(features), np.concatenate(labels)


def digests(of):
    return {bytes.fromhex(digest) for digest in of.digests}


@functools.cache
def division(name="lenet5", unfreeze="head"):
    return divide(network(name), phase(unfreeze=unfreeze))


def feed_of(read, of=division, number=0, epochs=2, console=QUIET):
    feed = Feed(read, of(), number, epochs, console)
    feed.prepare()
    return closing(feed)


def all_layers():
    """A division whose features are pixels."""
    return division("mobilenet", "all")


@pytest.mark.parametrize(
    ("augment", "views", "why"),
    [
        (Augment(mixup=0.2), None, "data.augment.mixup mixes pixels"),
        (Augment(cutmix=1.0), None, "data.augment.cutmix mixes pixels"),
        (Augment(flip="both", mixup=0.2), 4, "data.augment.mixup mixes pixels"),
        (Augment(flip="both"), None, "With data.views, e.g. 8, each view would pass once and be kept"),
    ],
)
def test_pictures_that_are_never_the_same_again_are_not_kept_and_the_run_says_why(augment, views, why, store):
    read = pictures(data_=data(augment=augment, views=views), cache=FLOAT16, store=store)
    with feed_of(read, console=(heard := Heard())) as feed:
        (reason,) = [line for line in heard.said if "training pictures pass the frozen layers in every epoch" in line]
        assert why in reason
        assert {picture for _, picture, view in store.written} & digests(read.validation) == digests(read.validation)
        epoch(feed)
        assert len(store.written) == 12
        assert feed.activations[:2] == (24, 0)


def test_training_all_layers_keeps_nothing(store):
    read = pictures(cache=FLOAT16, store=store)
    with feed_of(read, all_layers, console=(heard := Heard())) as feed:
        epoch(feed)
        assert feed.activations == (0, 0, 0)
    assert heard.said == heard.warned == store.held() == []
    assert store.writes == 0


def test_a_phase_keeps_what_it_draws_and_a_cache_that_is_off_nothing(store):
    read = pictures(data_=data(augment=AUGMENT, views=8), cache=FLOAT16, store=store)
    with feed_of(read, epochs=2) as feed:
        assert {picture for _, picture, _ in store.written} == digests(read.train) | digests(read.validation)
        assert len(store.written) < 24 * 8
        for number in range(2):
            epoch(feed, number)
        assert len(list(feed.validation())) == 2
        drawn_ = {(row, seed) for number in range(2) for row, seed in zip(*feed._draw(number)[:2], strict=True)}
        assert feed.activations[:2] == (60, 48 - len(drawn_))
    with feed_of(pictures(data_=data(augment=AUGMENT, views=8))) as feed:
        epoch(feed)
        assert feed.activations == (24, 0, 0)


# ---------------------------------------------------------------------------------------------- views and their order


def distinct(count=6, reverse=False):
    """Pictures that their labels tell apart."""
    pictures_ = split(count)
    pictures_.labels[:] = range(count)
    if reverse:
        pictures_ = replace(
            pictures_,
            positions=pictures_.positions[::-1], labels=pictures_.labels[::-1], digests=pictures_.digests[::-1],
        )  # fmt: skip
    return pictures_


def drawn(augment=AUGMENT, views=None, seed=0, number=0, epochs=1, train=None):
    """What each of six pictures became, as its bytes: [epoch][picture]. All layers train, so features are pixels."""
    train = train or distinct()
    read = replace(pictures(train, data_=data(augment=augment, views=views, batch_size=4), seed=seed), classes=6)
    seen = []
    with feed_of(read, all_layers, number) as feed:
        for each in range(epochs):
            features, labels = epoch(feed, each)
            order = labels.argmax(axis=1)
            assert sorted(order) == list(range(6))
            seen.append([features[np.flatnonzero(order == picture)[0]].tobytes() for picture in range(6)])
    return seen


def plain():
    return [picture.astype(np.float32).tobytes() for picture in distinct().images(np.arange(6))]


def views_of(views, epochs, seed=0):
    """The distinct views of each picture that so many epochs draw."""
    return [set(of_one) for of_one in zip(*drawn(views=views, epochs=epochs, seed=seed), strict=True)]


def test_how_a_picture_is_changed_follows_from_its_content_and_the_epoch():
    assert drawn() == drawn(train=distinct(reverse=True))
    first, second = drawn(epochs=2)
    assert not set(first) & set(second)


def test_more_pictures_leave_the_views_of_the_others_as_they_are():
    few, more = distinct(), split(9, seed=5)
    more = replace(more, digests=(*few.digests, *more.digests[6:]))

    def views(train):
        read = pictures(train, data_=data(augment=AUGMENT, views=8))
        drawn = []
        with feed_of(read, all_layers) as feed:
            for number in range(20):
                order, views, _ = feed._draw(number)
                drawn.append(views[np.argsort(order)][:6].tolist())
        return drawn

    assert views(few) == views(more)
    assert {view for epoch in views(few) for view in epoch} == set(range(8))


def test_the_seed_and_the_phase_decide_what_is_drawn():
    for views in (None, 64):
        once = drawn(views=views)
        assert drawn(views=views) == once
        assert drawn(views=views, seed=1) != once
        assert drawn(views=views, number=1) != once


def test_each_picture_has_so_many_views_and_the_plain_one_is_among_them():
    for seen, untouched in zip(views_of(3, epochs=30), plain(), strict=True):
        assert len(seen) == 3
        assert untouched in seen


def test_more_views_are_more_and_another_seeds_are_others():
    three, five, others = views_of(3, epochs=30), views_of(5, epochs=60), views_of(3, epochs=30, seed=1)
    for seen, more, other, untouched in zip(three, five, others, plain(), strict=True):
        assert len(more) == 5
        assert seen < more
        assert seen & other == {untouched}


def test_one_view_is_the_plain_picture():
    assert drawn(Augment(), views=1) == drawn(Augment(), views=None) == [plain()]


def test_the_order_differs_from_epoch_to_epoch_and_validation_stays_plain_and_in_order():
    read = replace(pictures(distinct(), distinct(), data(augment=AUGMENT, views=4, batch_size=4)), classes=6)
    with feed_of(read, all_layers) as feed:
        orders = {tuple(epoch(feed, number)[1].argmax(axis=1)) for number in range(8)}
        assert len(orders) == 8
        assert [features.tobytes() for features in np.concatenate(list(feed.validation()))] == plain()


class Seen(InMemory):
    """Remembers which pictures were read."""

    def __init__(self, pixels):
        super().__init__(pixels)
        self.read_ = []

    def read(self, positions, group):
        self.read_ += positions.tolist()
        return super().read(positions, group)


@pytest.mark.parametrize("augment", [AUGMENT, Augment(flip="both", mixup=0.4)])
def test_an_epoch_may_start_at_any_batch_and_reads_nothing_of_those_before(augment):
    train = distinct()
    read = replace(pictures(train, data_=data(augment=augment, batch_size=4)), classes=6)
    with feed_of(read, all_layers) as feed:
        whole = list(feed.epoch(1))
    for start in range(len(whole) + 1):
        seen = Seen(train.pixels.pixels)
        with feed_of(replace(read, train=replace(train, pixels=seen)), all_layers) as feed:
            rest = list(feed.epoch(1, start))
        assert len(rest) == len(whole) - start
        for parts, others in zip(rest, whole[start:], strict=True):
            assert same(parts, others)
        assert len(seen.read_) == sum(len(labels) for _, labels, _ in whole[start:])
