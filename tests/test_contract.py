"""Every family of backbones through the whole of training: freeze, cut, one step, export, reload. One row a family."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline import export, finetune, trunk
from pipeline.backbones import BACKBONES
from pipeline.config import Blocks
from pipeline.model import divide
from serving.engines.openvino import OpenVino
from serving.export import read as read_export
from tests.exporting import exported
from tests.networks import QUIET, data, network, phase, same, split, values
from tests.networks import pictures as read

# The smallest member of each family, as small as it gets.
ROWS = [
    ("lenet5", {}),
    ("alexnet", {}),
    ("vgg16", {}),
    ("resnet50", {}),
    ("resnet50_v2", {}),
    ("inception_v3", {}),
    ("inception_resnet_v2", {}),
    ("xception", {}),
    ("mobilenet", {"alpha": 0.25}),
    ("mobilenet_v2", {"alpha": 0.35}),
    ("mobilenet_v3_small", {"alpha": 0.75, "minimalistic": True}),
    ("densenet121", {}),
    ("nasnet_mobile", {}),
    ("efficientnet_b0", {}),
    ("efficientnet_v2_b0", {}),
    ("convnext_tiny", {}),
]


def test_every_family_has_a_row():
    assert {BACKBONES[name].family for name, _ in ROWS} == {row.family for row in BACKBONES.values()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), ROWS, ids=[name for name, _ in ROWS])
def test_a_backbone_is_frozen_cut_trained_exported_and_reloaded(name, options, tmp_path):
    row = BACKBONES[name]
    size = row.default_size if row.fixed_size else row.min_size
    net = network(name, options, classes=2, size=size)
    pictures = split(4, classes=2, size=size)

    division = divide(net, phase(unfreeze=Blocks(blocks=1)))
    pixels = np.float32(pictures.images(np.arange(4)))
    features = division.frozen(pixels, training=False)
    np.testing.assert_allclose(
        division.trained(features, training=False), finetune.predict(net.model, pictures, 4), rtol=1e-4, atol=1e-5
    )

    forward = trunk.fastest(division.frozen, pixels)
    assert (forward.engine, forward.why) == (trunk.engines()[0], None)
    expected = features.numpy()
    np.testing.assert_allclose(forward.run(pixels), expected, atol=trunk.TOLERANCE * np.abs(expected).max())

    frozen, trained = values(division.unchanging), values(division.trained.trainable_variables)
    finetune.finetune(
        net, [phase(epochs=1, unfreeze=Blocks(blocks=1), layer_decay=0.5)],
        replace(read(pictures, pictures, data(batch_size=4)), classes=2), None, QUIET, lambda _: None,
    )  # fmt: skip
    assert same(frozen, values(division.unchanging))
    assert not same(trained, values(division.trained.trainable_variables))

    path, parity = exported(net.model, pictures, tmp_path)
    assert parity.pixels_largest_difference <= export.PIXELS_TOLERANCE
    assert parity.image_bytes_same_label == 1.0
    assert (path / "saved_model.pb").is_file()

    given, probabilities = read_export(path).warmup()
    served = OpenVino().load(read_export(path)).probabilities(given, seconds=60.0)
    np.testing.assert_allclose(served, probabilities, atol=OpenVino.tolerance)
