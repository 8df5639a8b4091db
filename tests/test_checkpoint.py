"""Checkpoints: a training that is killed, whenever and however often, ends as if it had not been."""

import json
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import checkpoint, finetune, trunk
from pipeline.artifacts import Epoch
from pipeline.backbones.weights import digest
from pipeline.checkpoint import Checkpoints, Progress
from pipeline.config import SGD, Augment, Blocks, Cache, Constant, Cosine, EarlyStopping, Head, Plateau, RMSprop, Step
from pipeline.console import Console
from pipeline.model import divide
from tests.networks import QUIET, data, network, phase, pictures, same, split, values
from tests.stores import Counting, Heard

ROOT = Path(__file__).parent.parent
ONE = Blocks(blocks=1)
TWO = Blocks(blocks=2)
ALL = {"unfreeze": "all", "backbone_mode": "training"}
AUGMENT = Augment(flip="both", crop_scale=0.5)


class Killed(BaseException):
    pass


class Mortal(Console):
    """Ends the process, as far as training can tell, after so many training steps and ends of epochs."""

    def __init__(self, events):
        super().__init__(quiet=True)
        self.left = events

    def event(self):
        self.left -= 1
        if self.left == 0:
            raise Killed

    @contextmanager
    def bar(self, label, total, unit="images", keep=True):
        def advance(steps=1, note="", label=label):
            if steps and "epoch" in label:
                self.event()

        yield advance


def unequal():
    """25 pictures, of which no batch size here makes whole batches, and more of one class."""
    pictures_ = split(25)
    pictures_.labels[20:] = 0
    return pictures_


def trained(phases, checkpoints=None, events=0, head=None, cache=None, store=None, name="lenet5", seed=0, **changes):
    """History without times, digest and random state of a training; None where it was killed."""
    net = network(name, head=head or Head(), seed=seed)
    validation = split(12, seed=1, name="validation")
    read = pictures(unequal(), validation, data(**{"batch_size": 6, **changes}), cache, store, seed=seed)
    console = Mortal(events)
    try:
        history = finetune.finetune(net, phases, read, checkpoints, console, lambda _: console.event())
    except Killed:
        return None
    records = [replace(epoch, seconds=0.0, images_per_second=0.0) for epoch in history]
    return records, digest(net.model), [v.numpy().tolist() for v in net.model.variables if "seed" in v.name]


def until_complete(checkpoints, deaths, *arguments, **changes):
    """Trained in several processes, of which each but the last dies after so many steps and ends of epochs."""
    for events in deaths:
        if (result := trained(*arguments, checkpoints=checkpoints, events=events, **changes)) is not None:
            return result
    return trained(*arguments, checkpoints=checkpoints, **changes)


BROAD = (
    [
        phase(epochs=2, optimizer="adam", weight_decay=0.1, ema=0.7, schedule=Cosine(warmup_epochs=0.5)),
        phase(
            epochs=3, unfreeze=ONE, learning_rate=3e-3, optimizer=SGD(momentum=0.9, nesterov=True), layer_decay=0.5,
            early_stopping=EarlyStopping(patience=1), backbone_mode="training",
        ),
    ],
    {"head": Head(hidden_units=[8], dropout=0.4, batch_norm=True, l2=0.01), "class_weights": "balanced"},
)  # fmt: skip
WILD = phase(epochs=9, learning_rate=3.0, optimizer="sgd", early_stopping=EarlyStopping(patience=2))

MATRIX = {
    "broad": BROAD,
    "plateau": ([phase(epochs=6, learning_rate=1e-6, optimizer="sgd", schedule=Plateau(patience=1))], {}),
    "plateau, longer": ([phase(epochs=7, learning_rate=1e-6, schedule=Plateau(patience=3))], {}),
    "step": ([phase(epochs=4, optimizer=RMSprop(momentum=0.5), schedule=Step(every_epochs=2))], {}),
    "cosine without warm-up": ([phase(epochs=3, optimizer="rmsprop", schedule="cosine", weight_decay=0.01)], {}),
    "the best epoch is not the last": ([WILD], {"head": Head(dropout=0.5)}),
    "and averaged": ([WILD.model_copy(update={"ema": 0.8})], {"head": Head(dropout=0.5, hidden_units=[8])}),
    "more, then less": ([phase(unfreeze=TWO, backbone_mode="training"), phase(), phase(unfreeze=ONE)], {}),
    "all": ([phase(**ALL, optimizer="adamw", weight_decay=0.1, clip_norm=0.1), phase()], {"augment": AUGMENT}),
    "batch normalisation below": ([phase(unfreeze=ONE, backbone_mode="training")], {"name": "mobilenet"}),
    "views": ([phase(), phase(unfreeze=ONE)], {"augment": AUGMENT, "views": 3, "cache": Cache(use="always")}),
    "views, not kept": ([phase(), phase(unfreeze=ONE)], {"augment": AUGMENT, "views": 3}),
    "mixup": ([phase(unfreeze=ONE, label_smoothing=0.1)], {"augment": Augment(flip="both", mixup=0.4)}),
    "cutmix": ([phase(epochs=3)], {"augment": Augment(cutmix=1.0)}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", MATRIX)
def test_killed_at_random_moments_it_ends_in_the_same_weights_and_history(case, tmp_path):
    phases, changes = MATRIX[case]
    stored = "cache" in changes
    whole = trained(phases, **changes, store=Counting(tmp_path / "first") if stored else None)
    chance = random.Random(case)
    checkpoints = Checkpoints(tmp_path, chance.choice([1, 2, 3, 4, 7]))
    events = 6 * len(whole[0])  # Five steps and an end of each epoch.
    deaths = [chance.randint(events // 3, events - 1), chance.randint(1, 6)]
    again = until_complete(checkpoints, deaths, phases, **changes, store=Counting(tmp_path) if stored else None)
    assert again == whole, (checkpoints, deaths)


def test_killed_a_few_times_it_ends_in_the_same_weights_and_history(tmp_path):
    phases, changes = BROAD
    again = until_complete(Checkpoints(tmp_path, 2), [4, 9], phases, **changes)
    assert again == trained(phases, **changes)


def test_the_best_epochs_weights_outlive_the_process(tmp_path):
    whole, steps = trained([WILD]), 5
    losses = [epoch.validation_loss for epoch in whole[0]]
    best = losses.index(min(losses))
    assert best < len(losses) - 1  # Else nothing would be brought back.
    assert trained([WILD], Checkpoints(tmp_path, 1), (best + 1) * (steps + 1) + 2) is None
    assert trained([WILD], Checkpoints(tmp_path, 1)) == whole


@pytest.mark.slow
def test_killed_after_any_step_or_epoch_it_ends_in_the_same_weights_and_history(tmp_path):
    phases, changes = BROAD
    phases = [
        phases[0].model_copy(update={"epochs": 1, "schedule": Constant()}), phases[1].model_copy(update={"epochs": 2}),
    ]  # fmt: skip
    changes = changes | {"batch_size": 9}
    whole = trained(phases, **changes)
    events = 1
    while trained(phases, Checkpoints(tmp_path / str(events), 2), events, **changes) is None:
        again = trained(phases, Checkpoints(tmp_path / str(events), 2), **changes)
        assert again == whole, events
        events += 1
    assert events > (3 + 1) * len(whole[0])  # Three steps and an end of each epoch.


@pytest.mark.parametrize("cache", [Cache(use="always"), Cache(use="off")], ids=["kept", "on the fly"])
def test_the_engine_that_began_a_phase_ends_it(cache, tmp_path, monkeypatch):
    """Engines round differently, and which one is chosen now may depend on what else has used the store."""
    phases = [phase(epochs=3, learning_rate=0.1)]

    def tried(place, now):
        checkpoints, store = Checkpoints(tmp_path / place, 2), None
        if cache.use == "always":
            store = Counting(tmp_path / place)
        monkeypatch.setattr(trunk, "TOLERANCE", -1.0)
        assert trained(phases, checkpoints, 7, cache=cache, store=store) is None
        monkeypatch.setattr(trunk, "TOLERANCE", now)
        if store is not None:
            store.prune(max_bytes=0)
        return trained(phases, checkpoints, cache=cache, store=store)

    monkeypatch.setattr(trunk, "TOLERANCE", 1e-3)
    with_openvino = trained(phases, cache=cache)
    assert with_openvino != tried("same", -1.0) == tried("other", 1e-3)


LONG = [phase.model_copy(update={"epochs": 12}) for phase in BROAD[0]], BROAD[1]
PROGRAM = """
    import sys
    from pathlib import Path
    from tests.test_checkpoint import LONG, Checkpoints, trained
    phases, changes = LONG
    print(*trained(phases, Checkpoints(Path(sys.argv[1]), 3), **changes))
"""


@pytest.mark.slow
def test_processes_that_are_killed_end_in_the_same_weights_and_history(tmp_path):
    def started():
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), tmp_path],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def changed_at():
        return path.stat().st_mtime_ns if path.exists() else None

    phases, changes = LONG
    whole = trained(phases, **changes)
    chance, path = random.Random(0), tmp_path / checkpoint.FILE
    for _ in range(2):
        before = changed_at()
        process = started()
        while process.poll() is None and changed_at() == before:
            time.sleep(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again, error = started().communicate(timeout=300)
    assert again.rstrip("\n") == " ".join(map(str, whole)), error[-2000:]


# ------------------------------------------------------------------------------------------------------------ the file

ARRAYS = {
    "network/3": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "network/7": np.array([1, 2], np.uint32),
    "optimizer/0": np.array(41, np.int64),
    "optimizer/1": np.zeros((0, 3), np.float32),
    "best/0": np.array([np.nan, -0.0, np.inf], np.float32),
}
RECORD = Epoch(1, 1, 1 / 3, 0.1, float("inf"), 0.2, 1e-3, 2.0, 3.0)
PROGRESS = Progress("key", 1, 2, 3, 4, (float("nan"), 1.1, 24.0), 1e-3, 5.5, "openvino", {"0:a": "ff"}, [RECORD])


def written(folder):
    checkpoints = Checkpoints(folder / "checkpoint", 1)
    checkpoints.write(PROGRESS, ARRAYS)
    return checkpoints


def assert_whole(read):
    progress, arrays = read
    assert json.dumps(asdict(progress)) == json.dumps(asdict(PROGRESS))
    assert list(arrays) == list(ARRAYS)
    for name, value in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (value.dtype, value.shape)
        assert arrays[name].tobytes() == value.tobytes()


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    assert Checkpoints(tmp_path, 1).read("key", pytest.fail) is None
    checkpoints = written(tmp_path)
    assert_whole(checkpoints.read("key", pytest.fail))
    checkpoints.write(Progress("key", steps=5), {})
    assert checkpoints.read("key", pytest.fail) == (Progress("key", steps=5), {})
    assert [path.name for path in checkpoints.folder.iterdir()] == [checkpoint.FILE]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_file_that_is_damaged_anywhere_is_passed_over(tmp_path_factory, damage):
    checkpoints = written(tmp_path_factory.mktemp("damaged"))
    content = bytearray(checkpoints.path.read_bytes())
    if damage.draw(st.booleans()):
        content = content[: damage.draw(st.integers(0, len(content) - 1))]
    else:
        content[damage.draw(st.integers(0, len(content) - 1))] ^= damage.draw(st.integers(1, 255))
    checkpoints.path.write_bytes(content)
    warned = []
    assert checkpoints.read("key", warned.append) is None
    (words,) = warned
    assert words.endswith("is damaged, and cannot be continued from: training starts from its beginning.")


def test_a_file_of_another_version_or_training_is_passed_over(tmp_path, monkeypatch):
    checkpoints, warned = written(tmp_path), []
    assert checkpoints.read("other", warned.append) is None
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
    assert checkpoints.read("key", warned.append) is None
    assert "was made with other pictures, settings, weights" in warned[0]
    assert "is of another version of graft" in warned[1]


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    checkpoints = written(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.write(PROGRESS, {"network/0": np.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_whole(checkpoints.read("key", pytest.fail))
    assert [path.name for path in checkpoints.folder.iterdir()] == [checkpoint.FILE]


def test_a_part_that_a_killed_process_left_does_no_harm(tmp_path):
    checkpoints = written(tmp_path)
    (checkpoints.folder / f".{checkpoint.FILE}.part").write_bytes(bytes(100_000))
    assert_whole(checkpoints.read("key", pytest.fail))
    checkpoints.write(PROGRESS, ARRAYS)
    assert_whole(checkpoints.read("key", pytest.fail))
    assert [path.name for path in checkpoints.folder.iterdir()] == [checkpoint.FILE]


# -------------------------------------------------------------------------------------------- what is continued from


def test_a_complete_training_is_not_repeated(tmp_path):
    phases = [phase(unfreeze=ONE, early_stopping=EarlyStopping()), phase(epochs=1)]
    checkpoints, first, again = Checkpoints(tmp_path, 2), network("lenet5"), network("lenet5")
    epochs = []
    history = finetune.finetune(first, phases, pictures(), checkpoints, QUIET, epochs.append)
    assert epochs == history
    changed = divide(first, phases[0]).trained.variables
    assert checkpoints.path.stat().st_size < sum(variable.numpy().nbytes for variable in changed) + 8_000
    again = network("lenet5")
    assert finetune.finetune(again, phases, pictures(), checkpoints, QUIET, pytest.fail) == history
    assert same(values(again.model.variables), values(first.model.variables))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"head": Head(dropout=0.5)},
        {"batch_size": 7},
        {"class_weights": "balanced"},
        {"cache": Cache(use="auto")},
        {"phases": [phase(epochs=2, learning_rate=0.02)]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_training_starts_from_its_beginning_and_says_so(changes, tmp_path, capsys):
    phases = [phase()]
    assert trained(phases, Checkpoints(tmp_path, 2), events=5) is None
    other = {"phases": phases} | changes
    assert trained(checkpoints=Checkpoints(tmp_path, 2), **other) == trained(**other)
    assert "was made with other" in capsys.readouterr().err.replace("\n", " ")


def test_other_pictures_labels_or_weights_are_another_training(tmp_path):
    phases, checkpoints = [phase(epochs=1)], Checkpoints(tmp_path, 2)

    def warned(train=None, validation=None, meddle=lambda net: None):
        meddle(net := network("lenet5"))
        heard = Heard()
        finetune.finetune(net, phases, pictures(train, validation), checkpoints, heard, lambda _: None)
        return len(heard.warned)

    relabelled = split()
    relabelled.labels[:2] = relabelled.labels[1::-1]
    kernel = network("lenet5").backbone.weights[0].shape
    assert warned() == warned() == 0
    assert warned(train=split(seed=9)) == 1
    assert warned(train=relabelled) == 1
    assert warned(validation=split(11, seed=1, name="validation")) == 1
    assert warned(meddle=lambda net: net.backbone.weights[0].assign(np.zeros(kernel))) == 1
    assert warned() == 1


def test_steps_between_checkpoints_are_counted_through_epochs_and_phases(tmp_path):
    written = []

    class Listening(Checkpoints):
        def write(self, progress, arrays):
            written.append((progress.phase, progress.epoch, progress.batch, progress.steps, progress.finished))
            super().write(progress, arrays)

    finetune.finetune(
        network("lenet5"), [phase(epochs=2), phase(epochs=1)], pictures(), Listening(tmp_path, 4), QUIET, lambda _: None
    )
    assert written == [
        (0, 0, 0, 0, False), (0, 1, 1, 4, False), (1, 0, 0, 6, False), (1, 0, 2, 8, False), (1, 1, 0, 9, True),
    ]  # fmt: skip


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        trained([phase()], Checkpoints(tmp_path / "file", 1))


# --------------------------------------------------------------------------------------------------- as Keras does it


def keras_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    return model


FIGURES = st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.25 + 1e-9, 0.3, 0.5, 0.9]), min_size=1, max_size=25)


@given(FIGURES, st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.1]))
@settings(max_examples=60, deadline=None)
def test_early_stopping_counts_as_keras_does(losses, patience, min_delta):
    model = keras_model()
    theirs = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=patience, min_delta=min_delta)
    theirs.set_model(model)
    theirs.on_train_begin()
    for epoch, loss in enumerate(losses):
        model.stop_training = False
        theirs.on_epoch_end(epoch, {"val_loss": loss})
        waited = finetune.stalled(losses[: epoch + 1], min_delta)
        assert (waited, waited >= patience) == (epoch - theirs.best_epoch, model.stop_training)
        if model.stop_training:
            break


@given(FIGURES, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_learning_rate_falls_when_keras_lets_it_fall(accuracies, patience):
    model = keras_model()
    theirs = keras.callbacks.ReduceLROnPlateau(
        "val_accuracy", mode="max", factor=0.5, patience=patience, min_delta=0.0, min_lr=0.0
    )
    theirs.set_model(model)
    theirs.on_train_begin()
    for epoch, accuracy in enumerate(accuracies):
        before = float(model.optimizer.learning_rate)
        theirs.on_epoch_end(epoch, {"val_accuracy": accuracy})
        falls = float(model.optimizer.learning_rate) < before
        assert finetune.plateau(accuracies[: epoch + 1], patience) == falls
