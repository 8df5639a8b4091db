"""A network divided for a phase: where it is cut, and that what lies below knows of one picture at a time."""

import numpy as np
import pytest

from pipeline.config import Blocks, From, Share
from pipeline.model import divide
from tests.networks import network, phase, split


@pytest.mark.parametrize(
    ("unfreeze", "cut", "shape"),
    [
        ("head", "conv_pw_13_relu, avg_pool", (256,)),
        (Blocks(blocks=1), "conv_pw_12_relu", (1, 1, 256)),
        (From(**{"from": "conv_pw_12"}), "conv_dw_12_relu", (1, 1, 128)),
        (Share(fraction=1.0), None, (32, 32, 3)),
        ("all", None, (32, 32, 3)),
    ],
)
def test_the_cut_is_named_and_what_is_frozen_ends_there(unfreeze, cut, shape):
    division = divide(network(), phase(unfreeze=unfreeze))
    assert division.cut == cut
    assert (division.frozen is None) == (cut is None)
    if division.frozen is not None:
        assert division.frozen.output_shape[1:] == shape
    assert division.trained.input_shape[1:] == shape


@pytest.mark.parametrize("name", ["mobilenet", pytest.param("resnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_what_is_frozen_gives_the_same_for_a_picture_alone_and_in_a_batch_in_any_mode(name, mode):
    """Even when it is called in training mode, as it is not: its batch normalisation never looks at the batch."""
    division = divide(network(name), phase(unfreeze=Blocks(blocks=1), backbone_mode=mode))
    pixels = split(8).images(np.arange(8)).astype(np.float32)
    for training in (False, True):
        together = division.frozen(pixels, training=training).numpy()
        assert np.ptp(together, axis=0).max() > 0
        for row in range(3):
            alone = division.frozen(pixels[row : row + 1], training=training).numpy()[0]
            np.testing.assert_allclose(alone, together[row], rtol=1e-4, atol=1e-5 * np.abs(together).max())
