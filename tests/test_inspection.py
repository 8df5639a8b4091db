"""What a network is made of, beside published counts, what TensorFlow does, and fields measured by gradients."""

import json
from functools import reduce
from itertools import product
from math import prod
from operator import add
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from pipeline import model, optimizers, pages
from pipeline.backbones import BACKBONES, cuts, weights
from pipeline.backbones.weights import outline
from pipeline.commands.inspect import inspect as command
from pipeline.config import SGD, AdamW, RMSprop
from pipeline.config_file import parse
from pipeline.inspection import FLOAT, by_kind, inspect, of_backbone, of_config, total
from pipeline.inspection_chart import chart
from pipeline.receptive import Window
from tests.networks import network, phase

SLOW = pytest.mark.slow
CONFIGS = Path(__file__).parent.parent / "configs"


def layers_of(name, size=None):
    return {layer.name: layer for layer in of_backbone(name, size or BACKBONES[name].default_size, 32).layers}


def published(name):
    """A network of `keras.applications` with its classification layer, as its paper counts it."""
    side = 299 if name == "InceptionV3" else 224
    with keras.StatelessScope(initialize_variables=False):
        return total(inspect(getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3))))


# ------------------------------------------------------------------------------------------------------------ published


@pytest.mark.parametrize(
    ("name", "units", "weights", "connections"),
    [
        ("c1", 4704, 156, 122_304),
        ("s2", 1176, 0, 0),  # 12 and 5,880 in the paper, whose subsampling has a coefficient and a bias for each map
        ("c3", 1600, 2_416, 241_600),  # 1,516 and 151,600 in the paper, where a map of C3 reads some of S2 only
        ("s4", 400, 0, 0),  # likewise 32 and 2,000
        ("c5", 120, 48_120, 48_120),
        ("f6", 84, 10_164, 10_164),
    ],
)
def test_lenet_5_as_lecun_et_al_count_it(name, units, weights, connections):
    sizes = layers_of("lenet5")[name].sizes
    assert (sizes.units, sizes.weights, sizes.connections) == (units, weights, connections)


@pytest.mark.parametrize(
    ("name", "output", "weights"),
    [
        ("conv1", (55, 55, 96), 34_944),
        ("pool1", (27, 27, 96), 0),
        ("conv2", (27, 27, 256), 614_656),
        ("conv5", (13, 13, 256), 884_992),
        ("pool5", (6, 6, 256), 0),
        ("fc6", (4096,), 37_752_832),
        ("fc7", (4096,), 16_781_312),
    ],
)
def test_alexnet(name, output, weights):
    layer = layers_of("alexnet")[name]
    assert layer.output == output
    assert layer.sizes.weights == weights
    assert layer.sizes.units == prod(output)


@pytest.mark.parametrize(
    ("name", "weights", "multiply_adds"),
    [
        ("VGG16", 138_357_544, 15.5e9),
        ("VGG19", 143_667_240, 19.6e9),
        ("ResNet50", 25_636_712, 3.8e9),  # He et al., Table 1
        pytest.param("ResNet101", 44_707_176, 7.6e9, marks=SLOW),
        pytest.param("ResNet152", 60_419_944, 11.3e9, marks=SLOW),
        ("MobileNet", 4_253_864, 569e6),  # Howard et al., Table 8
        ("MobileNetV2", 3_538_984, 300e6),  # Sandler et al., Table 4
        ("MobileNetV3Large", 5_507_432, 219e6),  # Howard et al., Table 3
        ("EfficientNetB0", 5_330_571, 0.39e9),  # Tan and Le, Table 2
        pytest.param("InceptionV3", 23_851_784, 5.72e9, marks=SLOW),
        pytest.param("NASNetMobile", 5_326_716, 564e6, marks=SLOW),  # Zoph et al., Table 2
        pytest.param("DenseNet121", 8_062_504, 2.83e9, marks=SLOW),
        ("ConvNeXtTiny", 28_589_128, 4.5e9),  # Liu et al., Table 1
    ],
)
def test_whole_networks_as_published(name, weights, multiply_adds):
    sizes = published(name)
    assert sizes.weights == weights
    assert sizes.multiply_adds == pytest.approx(multiply_adds, rel=0.025)


@pytest.mark.parametrize(
    ("name", "layer", "field", "stride"),
    [
        ("alexnet", "pool5", 195, 32),
        ("vgg16", "block5_pool", 212, 32),
        ("mobilenet", "conv_pw_13_relu", 315, 32),
        ("resnet50", "conv5_block3_out", 483, 32),
        pytest.param("resnet101", "conv5_block3_out", 1027, 32, marks=SLOW),
        pytest.param("resnet152", "conv5_block3_out", 1507, 32, marks=SLOW),
        pytest.param("resnet50_v2", "post_relu", 483, 32, marks=SLOW),
        pytest.param("inception_v3", "mixed10", 1311, 32, marks=SLOW),
        pytest.param("inception_resnet_v2", "conv_7b_ac", 3039, 32, marks=SLOW),
    ],
)
def test_receptive_fields_as_published(name, layer, field, stride):
    """Araujo, Norris and Sim (Distill, 2019), at the end of each network."""
    found = layers_of(name)[layer]
    assert found.receptive_field == (field, field)
    assert found.stride == (stride, stride)
    assert not found.sees_all


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("lenet5", 10, 60_856 + 84 * 10 + 10),
        ("alexnet", 1000, 58_281_344 + 4096 * 1000 + 1000),
        ("vgg16", 1000, 138_357_544),
        ("vgg19", 1000, 143_667_240),
        ("resnet50", 1000, 25_636_712),
        ("mobilenet", 1000, 4_253_864),
        ("mobilenet_v3_large", 1000, 5_507_432),
        ("convnext_tiny", 1000, 28_589_128),
    ],
)
def test_a_network_with_the_head_it_was_published_with(name, classes, count):
    found = of_backbone(name, BACKBONES[name].default_size, 32).published
    assert (found.classes, found.weights) == (classes, count)


def test_the_published_network_has_its_own_size():
    assert of_backbone("vgg16", 64, 32).published.weights == 138_357_544


def test_what_the_papers_of_lenet_5_and_alexnet_count():
    lenet = of_backbone("lenet5", 32, 32)
    # Each map of C3 reads 3, 4 or 6 maps of S2; each of S2 and S4 has a coefficient and a bias; the output's are fixed.
    c3 = 6 * (25 * 3 + 1) + 9 * (25 * 4 + 1) + (25 * 6 + 1)
    fewer, more = layers_of("lenet5")["c3"].sizes.weights - c3, 2 * (6 + 16)
    assert total(lenet.layers).weights - fewer + more == 60_000
    assert lenet.published.paper == (
        f"60,000 in the paper: {fewer} fewer in C3, {more} more in S2 and S4, and none that train in the head"
    )
    # Of what the 2nd, 4th and 5th convolution read, each GPU has half.
    halved = sum(layers_of("alexnet")[name].sizes.weights - maps for name, maps in
                 (("conv2", 256), ("conv4", 384), ("conv5", 256))) // 2  # fmt: skip
    alexnet = of_backbone("alexnet", 227, 32).published
    assert alexnet.paper.startswith(f"{alexnet.weights - halved:,} in the paper")


# ------------------------------------------------------------------------------------------------------ the whole table


# The others take a while to build.
QUICK = ("lenet5", "alexnet", "vgg16", "mobilenet", "mobilenet_v3_small", "convnext_tiny")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else SLOW) for name in BACKBONES])
def test_every_backbone_at_its_own_size(name, monkeypatch):
    built = []
    monkeypatch.setattr(weights, "outline", lambda *arguments: built.append(outline(*arguments)) or built[0])
    row = BACKBONES[name]
    found = of_backbone(name, row.default_size, 32)
    network = built[0]
    sums = total(found.layers)
    assert sums.weights == network.count_params()
    assert sums.trainable == sum(prod(weight.shape) for weight in network.trainable_weights)
    assert sums == reduce(add, by_kind(found.layers).values()) + total(
        layer for layer in found.layers if layer.kind not in by_kind(found.layers)
    )
    assert [layer for _, layers in found.blocks for layer in layers] == list(found.layers)
    assert len(found.blocks) == len(cuts.blocks(network, row.block_end))
    assert found.published.classes == (10 if name == "lenet5" else 1000)
    assert found.published.weights > sums.weights
    assert found.layers[-1].output == network.output_shape[1:]
    assert 2.7 * sums.multiply_adds < sums.step_multiply_adds < 3 * sums.multiply_adds
    # The first and the last unit of a convolution along each axis see a part of the picture.
    for layer in (layer for layer in found.layers if layer.kind == "convolution"):
        for side, window in zip(layer.output, layer.windows or (), strict=False):
            assert window.at(0)[0] < window.stride
            assert window.at(0)[1] >= 0
            assert window.at(side - 1)[0] < row.default_size
            assert window.at(side - 1)[1] >= row.default_size - 2 * window.stride


# ------------------------------------------------------------------------------------------------- fields, by gradients


def positive(network):
    """A copy with nothing in it that cancels or hides a path: positive kernels, averages in place of maxima."""

    def copy(layer):
        if isinstance(layer, keras.layers.MaxPooling2D):
            return keras.layers.AveragePooling2D.from_config(layer.get_config())
        return type(layer).from_config(layer.get_config())

    copied = keras.models.clone_model(network, clone_function=copy)
    random = np.random.default_rng(0)
    for layer in copied._flatten_layers():
        for weight in layer.weights if not isinstance(layer, keras.Model) else ():
            if "kernel" in weight.name:
                fan_in = prod(weight.shape) / max(weight.shape[-1], 1)
                weight.assign(random.uniform(0.5, 1.5, weight.shape) / fan_in)
            elif weight.name == "bias":
                weight.assign(np.full(weight.shape, 0.1))
    return copied


def measured(network, units, brightness=1.0):
    """For each unit (row, column) of the output, whether each pixel moves it: bool [H, W]."""
    noise = tf.random.stateless_uniform((1, *network.input_shape[1:]), (0, 1), 0.9, 1.1)
    pixels = brightness * noise
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pixels)
        features = network(pixels, training=False)
        outputs = [tf.reduce_sum(features[0, row, column]) for row, column in units]
    return [np.abs(tape.gradient(output, pixels).numpy()[0]).max(-1) > 0 for output in outputs]


def box(moves):
    """First and last row, first and last column with a pixel that counts."""
    return tuple((int(places.min()), int(places.max())) for places in np.nonzero(moves))


@pytest.mark.parametrize(
    ("name", "size", "end"),
    [
        ("lenet5", 32, "s4"),
        ("vgg16", 64, "block3_pool"),
        ("mobilenet", 128, "conv_pw_6_relu"),
        ("resnet50", 128, "conv3_block1_out"),
        *(
            pytest.param(*rest, marks=SLOW)
            for rest in (
                ("alexnet", 227, "conv2"),
                ("inception_v3", 159, "mixed0"),
                ("densenet121", 128, "conv2_block6_concat"),
                ("convnext_tiny", 128, "convnext_tiny_stage_0_block_2_identity"),
                ("nasnet_mobile", 160, "reduction_concat_stem_1"),
                ("resnet50_v2", 128, "conv3_block1_out"),
                ("xception", 128, "add"),
            )
        ),
    ],
)
def test_a_unit_sees_its_field_and_no_more(name, size, end):
    backbone = outline(name, size)
    below = keras.Model(backbone.input, backbone.get_layer(end).output)
    *_, last = inspect(below)
    units = [(side // 2, other) for side in last.output[:1] for other in (last.output[1] // 2, 0)]
    for (row, column), moves in zip(units, measured(positive(below), units), strict=True):
        fields = [window.at(unit) for window, unit in zip(last.windows, (row, column), strict=True)]
        seen = [(max(first, 0), min(last_, size - 1)) for first, last_ in fields]
        (top, bottom), (left, right) = box(moves)
        assert (top, bottom) == seen[0]
        assert right == seen[1][1]
        assert left >= seen[1][0]
        if column:
            assert left == seen[1][0]
            assert tuple(b - a + 1 for a, b in fields) == last.receptive_field
            assert 0 < fields[0][0] < fields[0][1] < size - 1, "the field is inside of the picture"
        if name in ("lenet5", "vgg16", "mobilenet"):  # Others skip pixels, by strides wider than their kernels.
            assert moves[top : bottom + 1, left : right + 1].all()


def test_squeeze_and_excitation_sees_all_beside_its_field():
    backbone = outline("mobilenet_v3_small", 96)
    rows = {layer.name: layer for layer in inspect(backbone)}
    assert not rows["expanded_conv_depthwise"].sees_all
    assert rows["expanded_conv_squeeze_excite_avg_pool"].receptive_field is None
    assert rows["expanded_conv_squeeze_excite_conv"].stride is None
    assert rows["expanded_conv_squeeze_excite_mul"].sees_all
    assert rows["expanded_conv_squeeze_excite_mul"].receptive_field == (7, 7)
    below = keras.Model(backbone.input, backbone.get_layer("expanded_conv_squeeze_excite_mul").output)
    (moves,) = measured(positive(below), [(12, 12)], brightness=200.0)  # The network itself subtracts 127.5.
    assert moves.all()


PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))
WINDOWS = st.tuples(
    st.sampled_from(["conv", "grouped", "depthwise", "separable", "pool", "pad", "crop"]),
    PAIRS,
    st.sampled_from([((1, 1), 1), ((2, 2), 1), ((1, 1), 2), ((3, 3), 1)]),
    st.sampled_from(["valid", "same"]),
)


def layer_of(kind, kernel, strides, dilation, padding):
    layers = keras.layers
    match kind:
        case "conv":
            return layers.Conv2D(2, kernel, strides, padding, dilation_rate=dilation)
        case "grouped":
            return layers.Conv2D(2, kernel, strides, padding, dilation_rate=dilation, groups=2)
        case "depthwise":
            return layers.DepthwiseConv2D(kernel[0], strides, padding, dilation_rate=dilation)
        case "separable":
            return layers.SeparableConv2D(2, kernel, strides, padding, dilation_rate=dilation)
        case "pool":
            return layers.AveragePooling2D(kernel, strides, padding)
        case "pad":
            return layers.ZeroPadding2D((kernel, (0, 1)))
        case "crop":
            return layers.Cropping2D(((1, 0), (0, 2)))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(WINDOWS, min_size=1, max_size=4))
def test_fields_of_any_stack_of_windows(stack):
    height, width = 90, 84
    x = image = keras.Input((height, width, 2))
    for kind, kernel, (strides, dilation), padding in stack:
        x = layer_of(kind, kernel, strides, dilation, padding)(x)
    network = keras.Model(image, x)
    *_, last = inspect(network)
    assert last.output == network.output_shape[1:]
    units = [*product(*(sorted({0, side // 3, side // 2, side - 1}) for side in last.output[:2]))]
    # What is cut off may be there again as zeros.
    exact = all(kind != "crop" for kind, *_ in stack)
    for unit, moves in zip(units, measured(positive(network), units), strict=True):
        fields = [window.at(place) for window, place in zip(last.windows, unit, strict=True)]
        inside = all(0 <= first <= end < size for (first, end), size in zip(fields, (height, width), strict=True))
        if moves.any():  # Else it sees nothing but padding.
            for (first, end), (first_seen, end_seen) in zip(fields, box(moves), strict=True):
                assert first <= first_seen <= end_seen <= end
        if inside and exact:
            assert box(moves) == tuple(fields)
            assert last.receptive_field == tuple(end - first + 1 for first, end in fields)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (2, 2), (5, 3)])
def test_a_transposed_convolution_sees_no_more_than_its_field(kernel, stride, padding):
    image = keras.Input((24, 24, 1))
    x = keras.layers.Conv2D(1, 3, 2)(image)
    network = keras.Model(image, keras.layers.Conv2DTranspose(1, kernel, stride, padding)(x))
    *_, last = inspect(network)
    assert last.stride == (2 / stride, 2 / stride)
    middle = [last.output[0] // 2 + i for i in range(2 * stride)]
    widths = []
    for unit, moves in zip(middle, measured(positive(network), [(unit, 9) for unit in middle]), strict=True):
        (top, bottom), _ = box(moves)
        first, end = last.windows[0].at(unit)
        assert first <= top <= bottom <= end
        widths.append(bottom - top + 1)
    assert max(widths) <= last.receptive_field[0] <= max(widths) + 2


def test_a_window():
    assert Window().at(7) == (7, 7)
    assert Window().through(11, stride=4).at(3) == (12, 22)
    assert Window().through(3, padding=1).through(3, dilation=2, padding=2).at(5) == (2, 8)


# ----------------------------------------------------------------------------------------- connections, by derivatives


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(3, 3),
        keras.layers.Conv2D(4, (2, 3), (2, 1), groups=2),
        keras.layers.Conv2D(2, 2, dilation_rate=2),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        keras.layers.Conv2DTranspose(3, 2, 2),
        keras.layers.Dense(3),  # at each place
    ],
)
def test_a_connection_is_a_derivative_that_is_not_zero(layer):
    """A convolution as a sparse matrix: its entries are the multiply-adds."""
    image = keras.Input((6, 5, 2))
    network = positive(keras.Model(image, layer(image)))
    pixels = tf.ones((1, 6, 5, 2))
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        features = network(pixels)
    sizes = total(inspect(network))
    assert sizes.multiply_adds == np.count_nonzero(tape.jacobian(features, pixels))
    assert sizes.connections == sizes.multiply_adds + features.shape.num_elements()  # a bias each
    assert sizes.step_multiply_adds == 2 * sizes.multiply_adds  # There is nothing below that asks for a gradient.
    assert inspect(network)[0].kind == "convolution"


def test_layers_that_hand_on_what_they_are_given_have_no_units():
    image = keras.Input((4, 4, 2))
    x = keras.layers.Dropout(0.5)(keras.layers.Activation("linear")(keras.layers.ReLU()(image)))
    rows = inspect(keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x))))
    assert [(row.kind, row.sizes.units) for row in rows] == [
        ("activation", 32), ("activation", 0), ("other", 0), ("other", 0), ("dense", 3),
    ]  # fmt: skip


def test_an_unknown_kind_of_layer_is_a_defect():
    image = keras.Input((4, 4, 2))
    with pytest.raises(AssertionError, match="no layer of kind UpSampling2D"):
        inspect(keras.Model(image, keras.layers.UpSampling2D()(image)))


# -------------------------------------------------------------------------------------------------------------- phases

CONFIG = {
    "name": "x",
    "data": {"source": "digits", "batch_size": 16},
    "backbone": {"name": "mobilenet", "weights": "none", "options": {"alpha": 0.25}},
    "head": {"hidden_units": [20], "batch_norm": True, "dropout": 0.5},
    "phases": [
        {"epochs": 1, "learning_rate": 1e-3, **changes}
        for changes in (
            {"unfreeze": "head"},
            {"unfreeze": {"blocks": 2}, "ema": 0.99},
            {"unfreeze": {"fraction": 0.3}, "optimizer": {"name": "sgd", "momentum": 0.0}},
            {"unfreeze": {"from": "conv_dw_9"}, "optimizer": "rmsprop"},
            {"unfreeze": "all", "optimizer": "sgd"},
        )
    ],
}


def config(**changes):
    return parse({**CONFIG, **changes})


@pytest.fixture(scope="module")
def inspected():
    return of_config(config(), 3, 16)


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=SLOW) for n in (2, 3, 4))])
def test_a_phase_is_as_training_divides_the_network(number, inspected):
    configured = config()
    step, phase = inspected.steps[number], configured.phases[number]
    ours = network(options={"alpha": 0.25}, head=configured.head, size=224)
    division = model.divide(ours, phase)
    variables = division.trained.trainable_variables
    assert total(step.layers).trainable == sum(prod(variable.shape) for variable in variables)
    assert step.cut == division.cut
    assert step.fed == division.trained.input_shape[1:]
    optimizer = optimizers.optimizer(phase, 10, division.learning_rate_scales, [v.name for v in variables])
    optimizer.build(variables)
    kept = sum(prod(variable.shape) for variable in optimizer.variables if len(variable.shape))
    assert step.memory(16).optimizer == FLOAT * kept
    trunk, _ = cuts.split(ours.backbone, None if division.cut is None else division.cut.split(",")[0])
    below = [] if trunk is None else inspect(trunk)
    assert step.frozen.multiply_adds == total(below).multiply_adds
    assert step.frozen.weights == total(below).weights
    assert step.frozen.units == total(below).units + (256 if phase.unfreeze == "head" else 0)  # with the pooling
    assert step.frozen.kept == step.frozen.trainable == 0
    assert step.frozen.step_multiply_adds == step.frozen.multiply_adds
    whole = total(step.layers)
    assert whole.weights == ours.backbone.count_params() + ours.head.count_params()
    assert step.frozen.multiply_adds + step.trained.multiply_adds == whole.multiply_adds


def test_the_cut_of_each_phase(inspected):
    found = [(step.unfreeze, step.cut, step.fed, step.stored_bytes) for step in inspected.steps]
    assert found == [
        ("head", "conv_pw_13_relu, avg_pool", (256,), 512),
        ("blocks: 2", "conv_pw_11_relu", (14, 14, 128), 2 * 14 * 14 * 128),
        ("fraction: 0.3", "conv_pw_9_relu", (14, 14, 128), 2 * 14 * 14 * 128),
        ("from: conv_dw_9", "conv_pw_8_relu", (14, 14, 128), 2 * 14 * 14 * 128),
        ("all", None, (224, 224, 3), None),
    ]
    assert [step.slots for step in inspected.steps] == [2, 3, 0, 1, 1]
    assert [name for name, _ in inspected.blocks][-2:] == ["conv_pw_13_relu", "head"]
    assert [layer.layer for layer in inspected.blocks[-1][1]] == [
        "GlobalAveragePooling2D", "Dropout", "Dense", "BatchNormalization", "ReLU", "Dropout", "Dense",
    ]  # fmt: skip


def test_the_store_keeps_what_the_config_says():
    assert of_config(config(cache={"dtype": "float32"}), 3, 16).steps[0].stored_bytes == 1024
    assert of_config(config(cache="off"), 3, 16).steps[0].stored_bytes is None


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [(SGD(momentum=0.0), 0), (SGD(), 1), (RMSprop(), 1), (RMSprop(momentum=0.9), 2), (AdamW(), 2)],
)
def test_numbers_that_an_optimizer_keeps(optimizer, slots):
    phases = [phase(unfreeze="all", optimizer=optimizer, weight_decay=0.1).model_dump(mode="json", by_alias=True)]
    lenet = config(backbone={"name": "lenet5", "weights": "none"}, head={}, phases=phases)
    memory = of_config(lenet, 10, 16).steps[0].memory(16)
    count = 60_856 + 850
    assert memory.weights == memory.gradients == 4 * count
    assert memory.optimizer == 4 * count * slots
    assert memory.activations == 4 * 16 * (32 * 32 * 3 + 8_084 + 10)
    assert memory.total == memory.weights + memory.gradients + memory.optimizer + memory.activations


def test_memory_is_shared_out_among_the_layers(inspected):
    for step in inspected.steps:
        fed = FLOAT * 16 * prod(step.fed)
        assert step.memory_of(step.layers, 16) + fed == step.memory(16).total
        assert sum(step.memory_of([layer], 16) for layer in step.layers) + fed == step.memory(16).total


def stored_by_tensorflow(network):
    """Numbers for one picture that a training step's backward half reads from its forward half."""

    def step(pixels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(pixels, training=True) ** 2)
        return tape.gradient(loss, network.trainable_variables)

    batch = 7  # no side of any kernel
    signature = tf.TensorSpec((batch, *network.input_shape[1:]), tf.float32)
    graph = tf.function(step, autograph=False).get_concrete_function(signature).graph

    def backward(operation):
        return operation.name.startswith("gradient_tape")

    read = {
        tensor.ref(): tensor.shape.num_elements() * tensor.dtype.size
        for operation in graph.get_operations() if backward(operation)
        for tensor in operation.inputs
        if not backward(tensor.op) and tensor.op.type != "Placeholder" and tensor.shape[:1] == batch
    }  # fmt: skip
    return sum(read.values()) / 4 / batch


@pytest.mark.parametrize(("name", "size"), [("lenet5", 32), ("vgg16", 32), pytest.param("mobilenet", 64, marks=SLOW)])
def test_as_many_units_are_kept_as_tensorflow_keeps(name, size):
    network = BACKBONES[name].build(input_shape=(size, size, 1 if name == "lenet5" else 3), weights=None)
    assert total(inspect(network)).kept == pytest.approx(stored_by_tensorflow(network), rel=0.05)


# --------------------------------------------------------------------------------------------------------- the command


def graft_inspect(*arguments, **environment):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*map(str, arguments)], env=environment)


def test_a_backbone_in_words():
    result = graft_inspect("lenet5")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:3] == ["lenet5", "without", "a"]
    assert result.stdout.splitlines()[1].startswith("with its published head, for 10 classes: 61,706 weights; 60,000")
    assert ["s2", "14x14x6", "6", "2", "5,880", "156", "122", "k", "118", "k", "755.1", "kB"] in lines
    assert ["f6", "84", "all", "84", "10,164", "10.2", "k", "10.1", "k", "173.4", "kB"] in lines
    assert ["convolution", "79.5%", "83.3%", "97.6%"] in lines
    assert ["243.4", "kB", "gradients,", "60,856", "x", "4", "bytes"] in lines


def test_a_config_in_words():
    result = graft_inspect(CONFIGS / "hymenoptera.yaml", "--set", "data.classes=[ants, bees]", "--batch-size", 8)
    assert result.exit_code == 0, result.output
    assert "with a head for 2 classes" in result.stdout
    assert "trains    514 weights of 219,058 (0.2%)" in result.stdout
    assert "cut       above conv_pw_9_relu\n" in result.stdout
    assert "stored    14x14x128, 50.2 kB for one picture" in result.stdout
    assert "28.9 M multiply-adds below the cut, 11.9 M above it" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "conv_pw_9_relu " in line)
    assert row.split()[-2:] == ["frozen", "frozen"]


def test_every_layer_and_those_that_see_all():
    result = graft_inspect("mobilenet_v3_small", "--layers", "--image-size", 64)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["expanded_conv_squeeze_excite_mul", "Multiply", "16x16x16", "7*"] in [line[:4] for line in lines]
    assert "*: and, by way of averages" in result.stdout
    assert sum(len(line) > 8 for line in lines) > 150


def test_a_narrow_terminal_gets_fewer_columns(monkeypatch):
    from rich.console import Console

    for width, left_out in ((200, ""), (80, "stride"), (40, "stride, multiply-adds, output, units")):
        monkeypatch.setattr("pipeline.commands.inspect.out", lambda width=width: Console(width=width))
        result = graft_inspect("mobilenet")
        said = [line for line in result.stdout.splitlines() if "too narrow for" in line]
        assert bool(said) == bool(left_out)
        assert left_out in "".join(said)


def test_figures_as_json():
    found = json.loads(graft_inspect("alexnet", "--json", "--batch-size", 128).stdout)
    assert set(found) == {
        "backbone", "options", "input", "classes", "published", "batch_size", "total", "kinds", "blocks", "layers",
        "training",
    }  # fmt: skip
    assert found["published"] == {"classes": 1000, "weights": 62_378_344}
    assert found["batch_size"] == 128
    assert found["input"] == [227, 227, 3]
    assert found["layers"][0] == {
        "name": "conv1", "operation": "conv1", "type": "Conv2D", "kind": "convolution", "output": [55, 55, 96],
        "receptive_field": [11, 11], "stride": [4, 4], "sees_all": False, "units": 290_400, "weights": 34_944,
        "connections": 55 * 55 * 34_944, "multiply_adds": 55 * 55 * 34_848,
        "memory_bytes": [4 * (128 * 290_400 + 4 * 34_944)],
    }  # fmt: skip
    assert found["kinds"]["dense"]["weights"] > 0.9 * found["total"]["weights"]
    assert found["kinds"]["convolution"]["connections"] > 0.9 * found["total"]["connections"]
    assert found["kinds"]["convolution"]["units"] > 0.7 * found["total"]["units"]
    (training,) = found["training"]
    assert training["memory_bytes"]["total"] == sum(v for k, v in training["memory_bytes"].items() if k != "total")
    assert training["frozen_weights"] == 0


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture(ending, tmp_path):
    file = tmp_path / f"depth.{ending}"
    classes = ["--set", "data.classes=[a, b]"]
    result = graft_inspect(CONFIGS / "digits-0-4.yaml", *classes, "--set", "data.source=folder", "--set",
                           "data.path=x", "--picture", file)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"picture  {file}" in result.stdout
    if ending == "png":
        with Image.open(file) as picture:
            assert picture.size == (1650, 1350)
            assert len(picture.convert("RGB").getcolors(1_000_000)) > 20
    else:
        text = file.read_text(encoding="utf-8")
        assert all(f">{word}<" in text for word in ("c1", "f6", "logits", "dense layers", "receptive field"))


@pytest.mark.parametrize("name", [pytest.param("densenet121", marks=SLOW), "convnext_tiny"])
def test_a_picture_of_many_layers_names_blocks(name, tmp_path):
    file = tmp_path / "depth.svg"
    assert graft_inspect(name, "--picture", file).exit_code == 0
    text = file.read_text(encoding="utf-8")
    last = of_backbone(name, 224, 32).blocks[-1][0]
    assert f">{last}<" in text
    assert "conv2_block1_1_conv" not in text


def test_a_picture_tells_a_convolution_from_what_follows_it():
    found = of_backbone("lenet5", 32, 32)
    with pages.drawing():
        units, weights_, *_ = chart(found).figure.axes
    whole, own = units.containers[:2]
    assert [bar.get_height() for bar in own] == pytest.approx([100 * n / 8084 for n in (4704, 1600, 120, 84)])
    assert [bar.get_height() for bar in whole] == pytest.approx([100 * n / 8084 for n in (5880, 2000, 120, 84)])
    whole, own = weights_.containers
    assert [bar.get_height() for bar in own] == [bar.get_height() for bar in whole]
    labels = [text.get_text() for text in units.get_legend().get_texts()]
    assert labels == ["convolutions", "dense layers", "what follows them: pooling, normalisation, …"]


def test_a_picture_shows_where_phases_begin(tmp_path):
    file = tmp_path / "depth.svg"
    options = ["--set", "data.classes=[ants, bees]", "--picture", file]
    assert graft_inspect(CONFIGS / "hymenoptera.yaml", *options).exit_code == 0
    text = file.read_text(encoding="utf-8")
    assert "phase 1 →" in text
    assert "phase 2 →" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zzz"], "'zzz' is neither a config, which is a YAML file, nor a backbone. Give one of them"),
        (["mobilnet"], "nor a backbone. Did you mean mobilenet?"),
        (["nowhere.yaml"], "Cannot read the config nowhere.yaml"),
        (["lenet5", "--image-size", "64"], "--image-size: lenet5 is defined for 32 pixels only"),
        (["vgg16", "--image-size", "16"], "--image-size: vgg16 needs at least 32 pixels. Received: 16"),
        (["vgg16", "--set", "data.image_size=64"], "--set changes a config, and vgg16 is none"),
        ([CONFIGS / "digits-0-4.yaml", "--image-size", "64"], "use --set data.image_size=SIZE"),
        (["lenet5", "--picture", "x.jpg"], "--picture must end in .png or .svg. Received: x.jpg"),
        (["lenet5", "--picture", "nowhere/x.png"], "--picture: there is no folder nowhere"),
        ([CONFIGS / "digits-0-4.yaml", "--set", "phases.0.unfreeze={blocks: 9}"], "the backbone has 4 blocks"),
        ([CONFIGS / "folder.yaml", "--set", "data.path=nowhere"], "--set 'data.classes=[ants, bees]' names them"),
        (
            [CONFIGS / "hymenoptera.yaml", "--set", "data.classes=[a, b]", "--set", "backbone.options.alpha=big"],
            "backbone.options: mobilenet at 224 pixels cannot be built with {'alpha': 'big'}",
        ),
    ],
)
def test_mistakes_are_one_paragraph(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = graft_inspect(*arguments)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
