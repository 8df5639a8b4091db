"""What is read from TensorFlow Serving's models.config, what is refused, and which versions a policy means."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from pipeline.errors import ConfigError
from serving import models_config
from serving.models_config import All, Latest, Specific, Wanted

WHOLE = """
# As a fleet's configuration repository would have it.
model_config_list: {
  config: {
    name: "ants", base_path: "/models/ants", model_platform: "tensorflow"
    logging_config { sampling_config { sampling_rate: 0.1 } log_collector_config { type: "" filename_prefix: "/x" } }
    model_version_policy: { specific { versions: 3 versions: [4, 3] } }
    version_labels { key: "stable" value: 3 }
    version_labels: {key: 'canary', value: 4}
  }
  config { name: "digits 0–4" base_path: "/models/digits" model_type: TENSORFLOW }
}
"""


def read(folder, text):
    path = folder / "models.config"
    path.write_text(text, encoding="utf-8")
    return models_config.read(path)


def one(rest="", name="m", base_path="/m"):
    return f'model_config_list {{ config {{\n name: "{name}"\n base_path: "{base_path}"\n {rest} }} }}'


def test_a_whole_file_is_read_in_its_order(tmp_path):
    text_format.Parse(WHOLE, model_server_config_pb2.ModelServerConfig())  # TensorFlow Serving reads it as well.
    assert read(tmp_path, WHOLE) == [
        Wanted("ants", Path("/models/ants"), Specific(frozenset({3, 4})), {"stable": 3, "canary": 4}),
        Wanted("digits 0–4", Path("/models/digits"), Latest(1), {}),
    ]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ("model_version_policy {}", Latest(1)),
        ("model_version_policy { latest {} }", Latest(1)),
        ("model_version_policy { latest { num_versions: 0 } }", Latest(1)),
        ("model_version_policy { latest { num_versions: 2 } }", Latest(2)),
        ("model_version_policy { all {} }", All()),
        ("model_version_policy { specific { versions: 7 } }", Specific(frozenset({7}))),
    ],
)
def test_policies(tmp_path, text, policy):
    assert read(tmp_path, one(text))[0].policy == policy


@pytest.mark.parametrize(
    ("policy", "available", "expected"),
    [
        (Latest(1), [2, 10, 9], {10}),
        (Latest(2), [2, 10, 9], {10, 9}),
        (Latest(5), [2, 10], {2, 10}),
        (Latest(1), [], set()),
        (All(), [3, 1], {1, 3}),
        (Specific(frozenset({1, 4})), [1, 2, 3], {1}),
        (Specific(frozenset({4})), [1], set()),
    ],
)
def test_versions_of_a_policy(policy, available, expected):
    assert models_config.versions(policy, available) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"names no models.*at least one config"),
        ("# nothing yet\n", r"names no models"),
        ("model_config_list {}", r"names no models"),
        ("model_config_list { config {", r"models\.config, line 1, is not in .*format"),
        (one("}}} stray"), r"line 4, is not in .*It must look like model_config_list"),
        (one("base_path: 5"), r"line 4, is not in"),
        (one("model_version_policy { latest {} all {} }"), r'line 4.*"all" is specified along with field "latest"'),
        ("{" * 9000, r"^.{,800}$"),
        ("model_config_list {" * 5000, r"is not in .*format"),
        ('custom_model_config { type_url: "x" }', r"custom_model_config.*Use a model_config_list"),
        ("custom_model_config { [type.googleapis.com/x.Y] { a: 1 } }", r"custom_model_config"),
        (
            'model_config_list { config { name: "a" base_path: "/a" } config { name: "a" base_path: "/b" } }',
            r"lists the model 'a' more than once",
        ),
        (one(base_path="models/m"), r"model 'm': base_path must be an absolute path.*Received: 'models/m'"),
        (one(base_path=""), r"base_path must be an absolute path.*Received: ''"),
        (one(base_path="gs://bucket/m"), r"on this machine.*Received: 'gs://bucket/m'"),
        (one('model_platform: "other"'), r'model_platform must be "tensorflow"\. Received: \'other\''),
        (one("model_version_policy { specific {} }"), r"specific needs at least one version"),
        (one(name=""), r"name must have at least one character.*Received: ''"),
        (one(name="a/b"), r"no slash, colon.*Received: 'a/b'"),
        (one(name="a:b"), r"no slash, colon.*Received: 'a:b'"),
        (one(name="a\\nb"), r"control character.*Received: 'a\\nb'"),
        (one('version_labels { key: "a/b" value: 1 }'), r"label must have.*Received: 'a/b' for 1"),
        (one('version_labels { key: "" value: 1 }'), r"label must have.*Received: '' for 1"),
        (one('version_labels { key: "old" value: -1 }'), r"not negative\. Received: 'old' for -1"),
    ],
)
def test_what_is_wrong_is_said_in_one_paragraph(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "models.config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"models\.config cannot be read"):
        models_config.read(path)
