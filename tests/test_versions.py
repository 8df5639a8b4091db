"""Versions noticed, loaded, checked, swapped and closed: with a small engine and a clock that the tests move."""

import contextlib
import logging
import re
import shutil
import threading
import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serving.app import create_app
from serving.engines import ENGINES, LoadError, NotYet
from serving.errors import BadRequest, NotFound, Unavailable
from serving.metrics import Metrics
from serving.settings import Settings
from serving.versions import RETRY_SECONDS, Versions
from tests import exporting, served
from tests.networks import split
from tests.served import SECONDS, Clock, Means, add, change_warmup, eventually, together

PICTURES = split(3, size=served.SIZE).images(np.arange(3))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A version's folder, which the tests copy."""
    return served.means(tmp_path_factory.mktemp("source"))


class Server:
    """Versions, and what lies around them.

    Attributes:
        export: the folder that they are looked for in.
        config: the models.config, if any.
    """

    def __init__(self, folder, source, log, config=False, at_once=1):
        self.export = folder / "export"
        self.export.mkdir()
        self.config = folder / "models.config"
        self.engine, self.clock, self.metrics = Means(at_once), Clock(), Metrics()
        settings = Settings(export=self.export, models_config=self.config if config else None)
        self.versions = Versions(settings, self.engine, self.metrics, self.clock)
        self._source, self._log = source, log

    def add(self, version, name="m", **manifest):
        return add(self._source, self.export / name, version, **manifest)

    def remove(self, version, name="m"):
        shutil.rmtree(self.export / name / str(version))

    def look(self, *configs):
        """Looks once, after having written a models.config with a model in each argument."""
        if configs:
            models = "".join(f"config {{ {self.base} {text} }}\n" for text in configs)
            self.config.write_text(f"model_config_list {{ {models} }}")
        self.versions.look()

    @property
    def base(self):
        return f'name: "m" base_path: "{self.export}/m"'

    def model(self, version):
        """The newest that the engine loaded of a version."""
        return [model for model in self.engine.models if model.version == version][-1]

    def serves(self, name="m", version=None, label=None):
        """The number of the version that answers, and does so rightly."""
        with self.versions.borrow(name, version, label) as lent:
            given = lent.model.probabilities(PICTURES, SECONDS)
            np.testing.assert_allclose(given, served.expected(PICTURES), atol=1e-5)
            return lent.version

    def states(self, name="m"):
        return {status.version: status.state.value for status in self.versions.status(name)}

    def error(self, version, name="m"):
        return next(status.error for status in self.versions.status(name) if status.version == version)

    def settled(self, name="m"):
        """The states, once nothing is being closed any more."""
        eventually(lambda: "UNLOADING" not in self.states(name).values())
        return self.states(name)

    def samples(self, name):
        families = text_string_to_metric_families(self.metrics.text().decode())
        return [sample for family in families for sample in family.samples if sample.name == name]

    def gauge(self):
        """State by version, by the metrics."""
        found = {}
        for sample in self.samples("graft_model_version"):
            assert sample.value == 1
            assert int(sample.labels["version"]) not in found
            found[int(sample.labels["version"])] = sample.labels["state"]
        return found

    def loads(self, result):
        return sum(s.value for s in self.samples("graft_model_loads_total") if s.labels["result"] == result)

    def logged(self, message):
        """The fields of what was logged with this message."""
        return [record.fields for record in self._log.records if record.getMessage() == message]

    def errors(self):
        return [record for record in self._log.records if record.levelno >= logging.ERROR]


@pytest.fixture
def make(tmp_path, source, caplog):
    caplog.set_level(logging.INFO, "graft.serving")
    with contextlib.ExitStack() as stack:

        def make(**options):
            server = Server(tmp_path, source, caplog, **options)
            stack.callback(lambda: all(model.closings == 1 for model in server.engine.models) or pytest.fail("open"))
            stack.callback(lambda: together(lambda close: close(), [server.versions.close]))
            return server

        yield make


@pytest.fixture
def server(make):
    """With version 1 served."""
    server = make()
    server.add(1)
    server.look()
    return server


@pytest.fixture
def configured(make):
    """With versions 1, 2 and 3 on disk, and a models.config to come."""
    server = make(config=True)
    for version in (1, 2, 3):
        server.add(version)
    return server


# What is served


def test_nothing_is_served_before_the_first_look(make):
    server = make()
    server.add(1)
    assert not server.versions.ready
    assert server.versions.names() == []
    with pytest.raises(NotFound, match=r"Servable not found for request: Latest\(m\)"):
        server.serves()
    server.look()
    assert server.versions.ready
    assert server.serves() == 1


def test_the_newest_version_is_served_and_no_other_loaded(make):
    server = make()
    for version in (2, 10, 9):
        server.add(version)
    server.look()
    assert server.serves() == server.serves(version=10) == 10
    assert server.engine.attempts == [10]
    assert server.states() == server.gauge() == {10: "AVAILABLE"}
    with pytest.raises(NotFound, match=r"Servable not found for request: Specific\(m, 9\)"):
        server.serves(version=9)


def test_pictures_are_decoded_as_the_manifest_says_up_to_the_servers_limit(server):
    with server.versions.borrow("m") as lent:
        assert (lent.spec.height, lent.spec.crop, lent.spec.max_megapixels) == (served.SIZE, 1.0, 50)


@pytest.mark.parametrize("name", [".2", "002", "2.0", "-2", "two", "²", "٢", "2 ", "+2", ".incoming-2"])
def test_other_names_are_no_versions(server, name):
    server.add(1, name="other").rename(server.export / "m" / name)
    server.look()
    assert server.states() == {1: "AVAILABLE"}


def test_a_file_is_no_version_and_no_model(server):
    (server.export / "m" / "2").touch()
    (server.export / "notes").touch()
    server.look()
    assert server.versions.names() == ["m"]
    assert server.states() == {1: "AVAILABLE"}


def test_hidden_folders_and_those_without_versions_are_no_models(make):
    server = make()
    server.add(1, name=".hidden")
    (server.export / "empty").mkdir()
    server.look()
    assert server.versions.names() == []
    assert not server.versions.ready


def test_several_models_one_broken(make):
    server = make()
    for name in ("a", "b", "c"):
        server.add(1, name=name)
    (server.export / "b" / "1" / "manifest.json").unlink()
    server.look()
    assert server.versions.names() == ["a", "b", "c"]
    assert (server.serves("a"), server.serves("c")) == (1, 1)
    assert server.states("b") == {1: "END"}
    with pytest.raises(Unavailable, match=r"No version of the model b is loaded: GET /v1/models/b says why"):
        server.serves("b")
    with pytest.raises(NotFound, match="Could not find any versions of model d"):
        server.versions.status("d")
    assert server.versions.ready


def test_a_missing_export_folder_is_complained_of_once_and_what_is_served_stays(server):
    server.export.rename(server.export.with_name("elsewhere"))
    for _ in range(3):
        server.look()
    assert server.serves() == 1
    [complaint] = server.logged("the models cannot be read; those that are served stay")
    assert "export" in complaint["error"]
    server.export.with_name("elsewhere").rename(server.export)
    server.add(2)
    server.look()
    assert server.serves() == 2


# Swaps


def test_a_new_version_is_loaded_beside_the_old_one_and_swapped(server):
    old = server.model(1)
    server.add(2)
    with server.versions.borrow("m") as lent:
        server.look()
        assert (lent.version, server.serves()) == (1, 2)
        assert server.states() == server.gauge() == {2: "AVAILABLE", 1: "UNLOADING"}
        lent.model.probabilities(PICTURES, SECONDS)
        with pytest.raises(NotFound, match=r"Specific\(m, 1\)"):
            server.serves(version=1)
    assert server.settled() == server.gauge() == {2: "AVAILABLE"}
    assert old.closings == 1
    assert [fields["version"] for fields in server.logged("version served")] == [2]
    assert [fields["version"] for fields in server.logged("version closed")] == [1]


def test_a_version_is_closed_when_the_last_of_several_requests_gives_it_back(server):
    old = server.model(1)
    server.add(2)
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        for stack in (first, second):
            stack.enter_context(server.versions.borrow("m"))
        server.look()
        first.close()
        assert server.states()[1] == "UNLOADING"
        assert not old.closed.is_set()
    assert old.closed.wait(SECONDS)


def test_a_version_that_nobody_uses_is_closed_at_once(server):
    server.add(2)
    server.look()
    assert server.model(1).closed.wait(SECONDS)


def test_a_failed_request_gives_its_version_back(server):
    with pytest.raises(ZeroDivisionError), server.versions.borrow("m"):
        raise ZeroDivisionError
    server.add(2)
    server.look()
    assert server.model(1).closed.wait(SECONDS)


def test_a_version_in_use_is_unloading_until_it_is_given_back(server):
    server.add(2)
    with server.versions.borrow("m"):
        for _ in range(3):
            server.look()
            assert server.states() == server.gauge() == {2: "AVAILABLE", 1: "UNLOADING"}
    assert server.settled() == {2: "AVAILABLE"}


def test_removing_the_newest_folder_goes_back_to_the_one_before(server):
    server.add(2)
    server.look()
    server.remove(2)
    server.look()
    assert server.serves() == 1
    assert server.settled() == {1: "AVAILABLE"}
    assert server.engine.attempts == [1, 2, 1]


def test_going_back_while_the_old_version_is_still_in_use(server):
    server.add(2)
    with server.versions.borrow("m") as lent:
        server.look()
        server.remove(2)
        server.look()
        with server.versions.borrow("m") as again:
            assert (lent.version, again.version) == (1, 1)
            assert lent.model is not again.model
        assert server.states()[1] == "AVAILABLE"
    assert lent.model.closed.wait(SECONDS)
    assert server.serves() == 1
    assert server.settled() == server.gauge() == {1: "AVAILABLE"}


def test_an_emptied_folder_keeps_the_last_version(server):
    server.remove(1)
    for _ in range(2):
        server.look()
    assert server.serves() == 1
    server.add(2)
    server.look()
    assert server.serves() == 2


def test_a_removed_model_is_closed_and_forgotten(server):
    server.add(1, name="other")
    server.look()
    shutil.rmtree(server.export / "m")
    server.look()
    assert server.engine.models[0].closed.wait(SECONDS)
    assert server.settled() == {}
    server.look()
    assert server.versions.names() == ["other"]
    assert {sample.labels["model"] for sample in server.samples("graft_model_version")} == {"other"}
    with pytest.raises(NotFound):
        server.versions.status("m")


def test_a_removed_model_that_is_in_use_is_finished(server):
    with server.versions.borrow("m") as lent:
        shutil.rmtree(server.export / "m")
        for _ in range(2):
            server.look()
        lent.model.probabilities(PICTURES, SECONDS)
        assert server.states() == {1: "UNLOADING"}
    assert lent.model.closed.wait(SECONDS)
    assert eventually(lambda: server.look() or server.versions.names() == [])


def test_a_model_that_returns_while_its_old_version_is_in_use(server):
    with server.versions.borrow("m") as lent:
        shutil.rmtree(server.export / "m")
        server.look()
        server.add(1)
        server.look()
        assert server.serves() == 1
    assert lent.model.closed.wait(SECONDS)
    assert server.settled() == server.gauge() == {1: "AVAILABLE"}


# Failures: what is done to a version's folder, what the engine does, and what is said of it


def _nan(log):
    values = log.predict_log.response.outputs["probabilities"]
    values.tensor_content = np.full(3, np.nan, np.float32).tobytes()


def _no_answer(log):
    log.predict_log.ClearField("response")


def _cut(file, share):
    def cut(path):
        content = (path / file).read_bytes()
        (path / file).write_bytes(content[: int(len(content) * share)])

    return cut


def _write(file, content):
    return lambda path: (path / file).write_bytes(content)


FAILURES = {
    "the engine says why": (None, {"raises": LoadError("no room for it")}, r"^no room for it$"),
    "the engine raises anything": (None, {"raises": ZeroDivisionError("by zero")}, r"^by zero$"),
    "the engine has no words": (None, {"raises": RuntimeError()}, r"^RuntimeError$"),
    "it disagrees": (None, {"alters": lambda p: np.roll(p, 1, axis=1)}, r"does not agree with the SavedModel on the "),
    "it gives NaN": (None, {"alters": lambda p: p * np.float32("nan")}, r"differs by nan, allowed is 1e-05"),
    "it gives other shapes": (None, {"alters": lambda p: p[:, :2]}, r"of shape \(8, 2\), at export \(8, 3\)"),
    "it fails its warm-up": (None, {"alters": OSError("the disk is away")}, r"^the disk is away$"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), {}, r"not a model exported by graft"),
    "a damaged manifest": (_cut("manifest.json", 0.5), {}, r"manifest\.json is damaged"),
    "other pixels": (None, {"manifest": {"pixels_version": 2}}, r"version 2 of graft's decoder; this is version 1"),
    "no SavedModel": (lambda path: (path / "saved_model.pb").unlink(), {}, r"saved_model\.pb cannot be read"),
    "half a SavedModel": (_cut("saved_model.pb", 0.5), {}, r"not a whole model: saved_model\.pb cannot be read"),
    "an empty SavedModel": (_cut("saved_model.pb", 0), {}, r"lacks the signature pixels, serving_default"),
    "no warm-up records": (lambda path: shutil.rmtree(path / "assets.extra"), {}, r"warm-up records cannot be read"),
    "half the warm-up records": (_cut(served.WARMUP, 0.5), {}, r"warm-up records cannot be read"),
    "warm-up records without answers": (
        lambda path: change_warmup(path, _no_answer), {}, r"no warm-up pictures with the probabilities.*Export it",
    ),
    "warm-up answers of NaN": (lambda path: change_warmup(path, _nan), {}, r"differs by nan"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "engine", "words"), FAILURES.values(), ids=FAILURES)
def test_a_version_that_cannot_be_served_leaves_the_old_one(server, spoil, engine, words):
    path = server.add(2, name="elsewhere", **engine.get("manifest", {}))
    if spoil:
        spoil(path)
    server.engine.raises |= {2: engine["raises"]} if "raises" in engine else {}
    server.engine.alters |= {2: engine["alters"]} if "alters" in engine else {}
    path.rename(server.export / "m" / "2")
    shutil.rmtree(server.export / "elsewhere")

    for _ in range(3):
        server.look()
        assert server.serves() == 1
        assert server.states() == server.gauge() == {2: "END", 1: "AVAILABLE"}
        [failed] = server.logged("version not served")
        assert (failed["model"], failed["version"], failed["engine"]) == ("m", 2, "means")
        assert server.error(2) == failed["error"]
        assert server.loads("failed") == 1
    assert re.search(words, failed["error"])
    assert all(model.closings == 1 for model in server.engine.models if model.version == 2)

    logged = len(server.errors())
    server.clock.now += RETRY_SECONDS - 1
    server.look()
    assert server.loads("failed") == 1
    server.clock.now += 1
    server.look()
    assert server.loads("failed") == 2
    assert len(server.errors()) == logged  # The same again is not logged again.

    server.add(3)
    server.look()
    assert server.serves() == 3
    assert server.settled() == server.gauge() == {3: "AVAILABLE"}
    assert server.versions.ready


def test_a_half_copied_folder_is_tried_again_when_its_files_change(server, source):
    path = server.export / "m" / "2"
    path.mkdir()
    server.look()
    assert server.states() == {2: "END", 1: "AVAILABLE"}
    for failed, file in enumerate(("saved_model.pb", "variables", "assets.extra", "manifest.json"), 1):
        assert server.serves() == 1
        assert server.loads("failed") == failed
        copy = shutil.copytree if (source / file).is_dir() else shutil.copy
        copy(source / file, path / file)
        server.look()
    assert server.serves() == 2


def test_a_failed_version_that_is_mended_is_served_at_the_next_look(server):
    path = server.add(2)
    content = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(content[:-100])
    server.look()
    (path / "saved_model.pb").write_bytes(content)
    server.look()
    assert server.serves() == 2
    assert server.error(2) == ""


def test_a_failed_version_that_is_removed_is_forgotten(server):
    server.engine.raises[2] = LoadError("no")
    server.add(2)
    server.look()
    server.remove(2)
    server.look()
    assert server.states() == server.gauge() == {1: "AVAILABLE"}


def test_another_error_is_logged_again(server):
    server.add(2)
    for words in ("first", "first", "second"):
        server.engine.raises[2] = LoadError(words)
        server.look()
        server.clock.now += RETRY_SECONDS
    assert [fields["error"] for fields in server.logged("version not served")] == ["first", "second"]
    assert server.error(2) == "second"


@pytest.mark.parametrize("when", ["load", "warm-up"])
def test_a_version_that_is_not_ready_elsewhere_is_asked_for_at_every_look(server, when):
    server.add(2)
    if when == "load":
        server.engine.raises[2] = NotYet("upstream still loads it")
    else:
        server.engine.alters[2] = Unavailable("upstream still loads it")
    for look in (2, 3, 4):
        server.look()
        assert len(server.engine.attempts) == look
        assert server.serves() == 1
        assert server.states() == server.gauge() == {2: "LOADING", 1: "AVAILABLE"}
        assert "upstream still loads it" in server.error(2)
    [awaited] = server.logged("version awaited")
    assert awaited["version"] == 2
    assert server.errors() == []
    assert server.loads("failed") == 0
    server.engine.raises.clear()
    server.engine.alters.clear()
    server.look()
    assert server.serves() == 2


def test_with_nothing_loaded_yet_the_server_is_not_ready(make):
    server = make()
    server.add(1)
    server.engine.raises[1] = NotYet("upstream is away")
    server.look()
    assert not server.versions.ready
    with pytest.raises(Unavailable):
        server.serves()
    server.engine.raises.clear()
    server.look()
    assert server.versions.ready


def test_going_back_to_a_version_that_cannot_be_loaded_keeps_the_newer_one(server):
    server.add(2)
    server.look()
    server.engine.raises[1] = LoadError("no")
    server.remove(2)
    server.look()
    assert server.serves() == 2
    assert server.states() == {2: "AVAILABLE", 1: "END"}


# models.config


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", {3}),
        ("model_version_policy { latest { num_versions: 2 } }", {2, 3}),
        ("model_version_policy { latest { num_versions: 9 } }", {1, 2, 3}),
        ("model_version_policy { all {} }", {1, 2, 3}),
        ("model_version_policy { specific { versions: 1 versions: 3 versions: 7 } }", {1, 3}),
    ],
)
def test_the_policy_says_which_versions_are_served(configured, policy, expected):
    configured.look(policy)
    assert configured.states() == dict.fromkeys(expected, "AVAILABLE")
    assert {configured.serves(version=version) for version in expected} == expected
    assert configured.serves() == max(expected)


def test_a_changed_config_is_followed(configured):
    for versions in ([1], [3], [1, 2], [2]):
        configured.look("model_version_policy { specific { " + " ".join(f"versions: {v}" for v in versions) + " } }")
        assert configured.settled() == configured.gauge() == dict.fromkeys(versions, "AVAILABLE")
        assert configured.serves() == max(versions)


def test_a_version_that_the_config_asks_for_in_vain_leaves_the_others(configured):
    configured.look("model_version_policy { specific { versions: 1 } }")
    configured.engine.raises[2] = LoadError("no")
    configured.look("model_version_policy { specific { versions: 2 } }")
    assert configured.serves() == 1
    configured.look("model_version_policy { specific { versions: 7 } }")
    assert configured.serves() == 1
    assert configured.states() == {1: "AVAILABLE"}


def test_a_damaged_config_leaves_what_is_served_and_is_complained_of_once(configured):
    configured.look("model_version_policy { specific { versions: 1 } }")
    configured.config.write_text("model_config_list { config {")
    for _ in range(3):
        configured.look()
    assert configured.serves() == 1
    message = "the models cannot be read; those that are served stay"
    [complaint] = configured.logged(message)
    assert "is not in TensorFlow Serving's format" in complaint["error"]
    configured.config.unlink()
    configured.look()
    assert configured.serves() == 1
    assert len(configured.logged(message)) == 2
    configured.look("")
    assert configured.serves() == 3
    configured.config.write_text("model_config_list { config {")
    configured.look()
    assert len(configured.logged(message)) == 3


def test_a_model_that_leaves_the_config_is_closed(configured):
    configured.look("")
    other = f'model_config_list {{ config {{ name: "other" base_path: "{configured.export}/m" }} }}'
    configured.config.write_text(other)
    configured.look()
    assert configured.serves("other") == 3
    eventually(lambda: configured.look() or configured.versions.names() == ["other"])
    assert [model.closings for model in configured.engine.models] == [1, 0]


def test_a_folder_that_does_not_exist_yet(make):
    server = make(config=True)
    server.look("")
    assert server.states() == {}
    with pytest.raises(Unavailable):
        server.serves()
    server.add(4)
    server.look()
    assert server.serves() == 4


# Labels


def label(version, name="stable"):
    return f'version_labels {{ key: "{name}" value: {version} }}'


ALL = "model_version_policy { all {} } "


def test_labels_choose_versions(configured):
    configured.look(ALL + label(1) + label(3, "canary") + label(3, "next"))
    assert [configured.serves(label=name) for name in ("stable", "canary", "next")] == [1, 3, 3]
    assert [status.labels for status in configured.versions.status("m")] == [("canary", "next"), (), ("stable",)]
    for unknown in ("Stable", "other"):
        with pytest.raises(BadRequest, match=f"Unrecognized servable version label: {unknown}"):
            configured.serves(label=unknown)
    with pytest.raises(BadRequest, match="label"):
        configured.serves("unknown", label="stable")


def test_a_label_attaches_to_a_loaded_version_alone(configured):
    configured.engine.raises[2] = NotYet("not yet")
    configured.look(ALL + label(2))
    with pytest.raises(BadRequest, match="Unrecognized servable version label: stable"):
        configured.serves(label="stable")
    configured.engine.raises.clear()
    configured.look()
    assert configured.serves(label="stable") == 2


def test_a_label_moves_when_the_version_it_moves_to_is_there(configured):
    configured.look(ALL + label(1))
    configured.look(ALL + label(2))
    assert configured.serves(label="stable") == 2
    configured.look(ALL + label(4))
    assert configured.serves(label="stable") == 2
    configured.add(4)
    configured.look()
    assert configured.serves(label="stable") == 4
    configured.look(ALL)
    with pytest.raises(BadRequest):
        configured.serves(label="stable")


def test_one_config_moves_a_label_and_changes_the_version(configured):
    specific = "model_version_policy {{ specific {{ versions: {} }} }} "
    configured.look(specific.format(1) + label(1))
    configured.look(specific.format(2) + label(2))
    assert configured.serves(label="stable") == 2
    assert configured.settled() == {2: "AVAILABLE"}


def test_a_label_leaves_with_its_version(configured):
    configured.look(ALL + label(1))
    configured.look(label(4))
    with pytest.raises(BadRequest):
        configured.serves(label="stable")


# Many at once


@pytest.mark.parametrize("by", ["config", "folder"])
def test_requests_find_an_open_version_through_hundreds_of_swaps(configured, by):
    config = "model_version_policy {{ specific {{ versions: {} }} }} "
    configured.look(config.format(1) if by == "config" else "")
    swapping = threading.Event()
    swapping.set()
    pixels = PICTURES[:1]

    def ask(_):
        seen = set()
        while swapping.is_set():
            with configured.versions.borrow("m") as lent:
                assert not lent.model.closed.is_set()
                time.sleep(0.001)  # Long enough for a swap or two.
                lent.model.probabilities(pixels, SECONDS)
                assert not lent.model.closed.is_set()
                seen.add(lent.version)
        return seen

    def swap():
        try:
            for swap in range(300):
                if by == "config":
                    configured.look(config.format(1 + swap % 2))
                else:
                    hidden = configured.export / "m" / ".3"
                    shown = configured.export / "m" / "3"
                    shown.rename(hidden) if shown.exists() else hidden.rename(shown)
                    configured.look()
        finally:
            swapping.clear()

    found = together(lambda work: swap() if work is None else ask(work), [None, 1, 2, 3])[1:]
    assert set.union(*found) == ({1, 2} if by == "config" else {2, 3})
    assert len(configured.engine.models) >= 300
    assert len(configured.settled()) == 1
    assert [model.closings for model in configured.engine.models].count(0) == 1
    assert configured.errors() == []


def test_close_closes_every_version_when_its_requests_have_ended(make):
    server = make()
    for name in ("a", "b"):
        server.add(1, name=name)
    server.versions.start()
    eventually(lambda: server.versions.ready)
    before = {thread.name for thread in threading.enumerate()}
    assert {"versions", "batches of a", "batches of b"} <= before
    closing = threading.Thread(target=server.versions.close)
    with server.versions.borrow("a") as lent:
        closing.start()
        eventually(lambda: server.engine.models[1].closed.is_set())
        assert not server.engine.models[0].closed.is_set()
        lent.model.probabilities(PICTURES, SECONDS)
    closing.join(SECONDS)
    assert [model.closings for model in server.engine.models] == [1, 1]
    assert not {"versions", "closing", "batches of a", "batches of b"} & {t.name for t in threading.enumerate()}
    with pytest.raises((Unavailable, NotFound)):
        server.serves("a")


def test_the_thread_that_looks_survives_what_goes_wrong(make, monkeypatch):
    server = make()
    server.add(1)
    went_wrong = iter([OSError("once"), RuntimeError("twice")])

    def wrong(path):
        for error in went_wrong:
            raise error
        return ()

    monkeypatch.setattr("serving.versions._files", wrong)
    monkeypatch.setattr(server.versions, "_stop", stop := threading.Event())
    monkeypatch.setattr(stop, "wait", lambda seconds: None)
    server.versions.start()
    eventually(lambda: server.versions.ready)
    assert server.serves() == 1


# Over HTTP


@pytest.fixture
def http(tmp_path, source, monkeypatch):
    """A client, the engine and the folder, with version 1 served and looks every few milliseconds."""
    engine = Means()
    monkeypatch.setitem(ENGINES, "openvino", lambda settings: engine)
    add(source, tmp_path / "m", 1)
    with TestClient(create_app(Settings(export=tmp_path, poll_seconds=0.005))) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield client, engine, tmp_path / "m"
    assert engine.closed


def ask(client, path="/v1/models/m"):
    return client.post(f"{path}:classify-image", content=exporting.encoded(PICTURES[0]))


def test_every_answer_names_the_version_that_made_it(http, source):
    client, _, home = http
    for version in (1, 2, 3):
        if version > 1:
            add(source, home, version)
        eventually(lambda v=version: client.get(f"/v1/models/m/versions/{v}").status_code == 200)
        eventually(lambda v=version: ask(client).json()["version"] == str(v))
        answer = ask(client)
        assert answer.headers["X-Model-Version"] == str(version)
        [prediction] = answer.json()["predictions"]
        best = served.expected(PICTURES[:1])[0]
        assert prediction["classes"][0]["label"] == served.CLASSES[best.argmax()]
        assert prediction["classes"][0]["probability"] == pytest.approx(best.max(), abs=1e-5)


def test_a_version_that_fails_is_seen_in_the_status_the_models_and_the_metrics(http, source):
    client, engine, home = http
    engine.raises[2] = LoadError("it is too large")
    add(source, home, 2)
    eventually(lambda: client.get("/v1/models/m").json()["model_version_status"][0]["state"] == "END")
    assert client.get("/v1/models/m").json()["model_version_status"] == [
        {"version": "2", "state": "END", "status": {"error_code": "UNKNOWN", "error_message": "it is too large"}},
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
    ]
    [model] = client.get("/models").json()["models"]
    assert model["versions"] == [
        {"version": "2", "state": "END", "labels": [], "error": "it is too large"},
        {"version": "1", "state": "AVAILABLE", "labels": [], "error": ""},
    ]
    metrics = client.get("/metrics").text
    assert 'graft_model_version{model="m",state="END",version="2"} 1.0' in metrics
    assert 'graft_model_loads_total{model="m",result="failed"} 1.0' in metrics
    assert ask(client).headers["X-Model-Version"] == "1"
    assert client.get("/readyz").status_code == 200


def test_requests_during_swaps_are_all_answered(http, source):
    client, engine, home = http
    swapping = threading.Event()
    swapping.set()

    def requests(_):
        answers = []
        while swapping.is_set():
            answers.append(ask(client))
        return answers

    def swaps():
        try:
            for version in range(2, 22):
                add(source, home, version)
                eventually(lambda v=version: engine.attempts[-1] == v)
        finally:
            swapping.clear()

    found = together(lambda work: swaps() if work is None else requests(work), [None, 1, 2])[1:]
    for answers in found:
        assert {answer.status_code for answer in answers} == {200}
        versions = [int(answer.headers["X-Model-Version"]) for answer in answers]
        assert versions == sorted(versions)
        assert [int(answer.json()["version"]) for answer in answers] == versions
    assert len({version for answers in found for version in [a.headers["X-Model-Version"] for a in answers]}) > 2
