"""Augmentation follows from the picture and the seed alone."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline import augment
from pipeline.config import Augment, RandAugment

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3)).astype(np.float32)
SEEDS = np.arange(12, dtype=np.int32).reshape(6, 2)
EVERY = [
    Augment(flip="horizontal"),
    Augment(flip="both"),
    Augment(crop_scale=0.3),
    Augment(rotation=20.0),
    Augment(color=0.5),
    Augment(rand_augment=RandAugment()),
]


@pytest.mark.parametrize("asked", EVERY, ids=lambda asked: str(asked.model_dump(exclude_defaults=True)))
def test_a_picture_changes_by_its_seed_alone(asked):
    change = augment.augmentation(asked, (48, 48, 3))
    changed = change(IMAGES, SEEDS).numpy()
    assert changed.shape == IMAGES.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert not np.array_equal(changed, IMAGES)
    backwards = change(IMAGES[::-1].copy(), SEEDS[::-1].copy()).numpy()[::-1]
    np.testing.assert_array_equal(changed, backwards)
    assert not np.array_equal(change(IMAGES, SEEDS + 100).numpy(), changed)


def test_nothing_asked_is_nothing_done():
    assert augment.augmentation(Augment(), (48, 48, 3)) is None
    assert augment.mixture(Augment(), (48, 48, 3), 3) is None


def test_the_whole_picture_is_a_crop_of_itself():
    whole = augment.random_resized_crop(tf.constant(IMAGES[0]), tf.constant([1, 2]), 1.0)
    np.testing.assert_allclose(whole, IMAGES[0], atol=1e-2)


def test_a_crop_keeps_at_least_the_share_that_is_asked_for():
    """A picture whose value is its place shows which part of it was kept."""
    rows, columns = np.mgrid[0:48, 0:48].astype(np.float32)
    places = tf.constant(np.stack([rows, columns, rows], axis=-1))
    shares = []
    for seed in range(200):
        kept = augment.random_resized_crop(places, tf.constant([seed, 0]), 0.6).numpy()
        shares.append(np.ptp(kept[..., 0]) * np.ptp(kept[..., 1]) / 47**2)
    assert min(shares) > 0.6 - 0.01
    assert min(shares) < 0.65
    assert max(shares) > 0.95


@pytest.mark.parametrize("asked", [Augment(mixup=0.5), Augment(cutmix=1.0)])
def test_mixtures_keep_the_labels_sum_and_repeat_with_the_seed(asked):
    labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    mix = augment.mixture(asked, (48, 48, 3), 3)
    images, mixed = mix(IMAGES, labels, tf.constant([3, 4]))
    again, _ = mix(IMAGES, labels, tf.constant([3, 4]))
    other, _ = mix(IMAGES, labels, tf.constant([5, 6]))
    np.testing.assert_allclose(mixed.numpy().sum(axis=1), 1.0, rtol=1e-5)
    assert not np.array_equal(images, IMAGES)
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, other)
