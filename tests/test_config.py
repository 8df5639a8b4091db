"""Configs: strict, explained, and the same after a round trip."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import config, config_file
from pipeline.backbones import BACKBONES
from pipeline.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
BASE = {"name": "x", "data": {"source": "folder", "path": "p"}, "backbone": {"name": "mobilenet"}}


def phase(**keys):
    return {"phases": [{"epochs": 2, "learning_rate": 1e-3, **keys}]}


def data(**keys):
    return {"data": {"source": "folder", "path": "p", **keys}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_says_how_to_run_it(path):
    header = path.read_text(encoding="utf-8").split("\nname:")[0]
    assert f"graft run configs/{path.name}" in header
    assert "expected" in header
    assert "runtime" in header
    loaded = config_file.load(path)
    assert loaded.name == path.stem or path.stem == "folder"


def test_defaults_survive_a_round_trip_through_yaml(tmp_path):
    built = config_file.parse(BASE)
    (tmp_path / "c.yaml").write_text(config_file.dump(built), encoding="utf-8")
    assert config_file.load(tmp_path / "c.yaml") == built


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nam": 1}, ["nam: unknown key. Did you mean name? What each"]),
        ({"xyz": 1}, ["xyz: unknown key. Allowed: name, seed, data"]),
        (
            {"backbone": {"name": "mobilenet", "weight": "none"}},
            ["backbone.weight: unknown key. Did you mean backbone.weights?"],
        ),
        (data(pth="x"), ["data.pth: unknown key. Did you mean data.path? What each"]),
        (phase(epoch=3), ["phases.0.epoch: unknown key. Did you mean phases.0.epochs?"]),
        (data(augmnt={}), ["data.augmnt: unknown key. Did you mean data.augment?"]),
        ({"image_size": 64}, ["image_size: unknown key. Did you mean data.image_size?"]),
        ({"dir": "x"}, ["dir: unknown key. Did you mean cache.dir or export.dir?"]),
        ({"epochs": 3}, ["epochs: unknown key. Did you mean phases.0.epochs?"]),
        (phase(dropout=0.5), ["phases.0.dropout: unknown key. Did you mean head.dropout?"]),
        ({"backbone": {"name": "mobilnet"}}, ["no such backbone. Did you mean mobilenet? Received: 'mobilnet'."]),
        ({"backbone": {"name": "VGG-19x"}}, ["no such backbone. Did you mean vgg19? Received: 'VGG-19x'."]),
        ({"backbone": {"name": "zzz"}}, ["no such backbone. Allowed: lenet5, alexnet,", "Received: 'zzz'"]),
        ({"backbone": {"name": "mobilenet", "weights": "imagnet"}}, ["or .keras. Did you mean imagenet? Received"]),
        ({"backbone": {"name": "mobilenet", "options": {"alpa": 1}}}, ["no option 'alpa'. Did you mean alpha? What"]),
        ({"backbone": {"name": "vgg16", "options": {"q": 1}}}, ["vgg16 has no option 'q'. Its options: none."]),
        (data(mean_subtraction="chanel"), ["'image' or 'none'. Did you mean channel? Received: 'chanel'."]),
        (phase(optimizer="adm"), ["'adamw', 'rmsprop'. Did you mean adam? Received: 'adm'."]),
        (phase(unfreeze="hed"), ["{fraction: 0.3}. Did you mean head? Received: 'hed'."]),
        (phase(unfreeze={"frction": 0.3}), ["{fraction: 0.3}. Did you mean fraction? Received: {'frction': 0.3}."]),
        (phase(optimizer=7), ["phases.0.optimizer: must be a word or a mapping of keys. Received: 7."]),
        (data(augment="flip"), ["data.augment: must be a mapping of keys. Received: 'flip'."]),
        ({"seed": True}, ["seed", "Received: True"]),
        ({"name": "a/b"}, ["name", "'a/b'"]),
        ({"phases": []}, ["phases"]),
        (phase(epochs="3"), ["phases.0.epochs", "integer", "Received: '3'"]),
        (phase(learning_rate=0), ["phases.0.learning_rate", "greater than 0", "Received: 0"]),
        (phase(unfreeze="half"), ["phases.0.unfreeze", "{blocks: 2}", "Received: 'half'"]),
        (phase(unfreeze={"blocks": 0}), ["phases.0.unfreeze.blocks", "Received: 0"]),
        (phase(unfreeze={"blocks": 1, "from": "x"}), ["phases.0.unfreeze", "allowed"]),
        (phase(unfreeze=[3]), ["phases.0.unfreeze", "allowed: head, all", "Received: [3]"]),
        (phase(unfreeze=3), ["phases.0.unfreeze", "allowed: head, all", "Received: 3"]),
        (phase(unfreeze={"blokcs": 1}), ["phases.0.unfreeze", "allowed", "Received: {'blokcs': 1}"]),
        (phase(optimizer="lion"), ["phases.0.optimizer", "'sgd', 'adam'", "Received: 'lion'"]),
        (phase(schedule={"warmup_epochs": 1}), ["phases.0.schedule.name: required, but missing"]),
        (phase(optimizer={"name": "adam", "momentum": 0.9}), ["phases.0.optimizer.momentum: unknown key"]),
        (phase(schedule={"name": "step"}), ["phases.0.schedule.every_epochs: required"]),
        (phase(schedule={"name": "cosine", "warmup_epochs": 2}), ["warmup_epochs must be smaller than epochs"]),
        (phase(schedule={"name": "step", "every_epochs": 2}), ["every_epochs must be smaller than epochs"]),
        (phase(schedule={"name": "plateau", "patience": 2}), ["schedule.patience must be smaller than epochs"]),
        (phase(optimizer={"name": "sgd", "momentum": 0.0, "nesterov": True}), ["nesterov has no effect"]),
        (phase(learning_rate=float("inf")), ["phases.0.learning_rate", "finite", "Received: inf"]),
        (phase(clip_norm=float("nan")), ["phases.0.clip_norm", "finite", "Received: nan"]),
        ({"head": {"l2": float("inf")}}, ["head.l2", "finite"]),
        ({"head": {"batch_norm": True}}, ["batch_norm has no effect without hidden_units"]),
        ({"head": {"activation": "elu"}}, ["activation has no effect without hidden_units"]),
        ({"name": "x" * 101}, ["name", "at most 100 characters"]),
        ({"name": None}, ["name", "Received: None"]),
        ({"output_dir": ""}, ["output_dir", "at least 1 character"]),
        (phase(layer_decay=0.5), ["layer_decay has no effect while unfreeze is head"]),
        (phase(backbone_mode="training"), ["backbone is frozen"]),
        (phase(optimizer="adamw"), ["adamw without weight_decay"]),
        (data(path=""), ["data.path", "at least 1 character", "Received: ''"]),
        (data(augment={"mixup": float("inf")}), ["data.augment.mixup", "finite"]),
        (data(path=None), ["source folder needs data.path"]),
        (data(name="tf_flowers"), ["data.name belongs to source tfds"]),
        (data(augment={"flop": 1}), ["data.augment.flop: unknown key", "flip"]),
        (data(augment={"mixup": 0.2, "cutmix": 1.0}), ["mixup and cutmix"]),
        (data(classes=["a", "a"]), ["names a class twice"]),
        (data(validation_fraction=0.6, test_fraction=0.4), ["leave nothing to train on"]),
        (data(image_size=16), ["mobilenet needs at least 32"]),
        ({"backbone": {"name": "resnet"}}, ["backbone.name: no such backbone", "resnet50", "Received: 'resnet'"]),
        ({"backbone": {"name": "mobilenet", "options": {"alfa": 1}}}, ["no option 'alfa'. Did you mean alpha?"]),
        ({"backbone": {"name": "lenet5"}}, ["no ImageNet weights for lenet5"]),
        (data(image_size=64) | {"backbone": {"name": "lenet5", "weights": "none"}}, ["32 pixels only"]),
        (data(views=0, augment={"flip": "both"}), ["data.views", "greater than or equal to 1", "Received: 0"]),
        (data(views=3), ["views has no effect without data.augment's flip, crop_scale"]),
        (data(views=3, augment={"mixup": 0.2}), ["views has no effect without data.augment's flip, crop_scale"]),
        (data(views=1, augment={"flip": "both"}), ["views: 1 is the plain picture alone", "set more views"]),
        ({"cache": "never"}, ["cache.use", "'auto', 'always' or 'off'", "Received: 'never'"]),
        ({"cache": {"size": 1}}, ["cache.size: unknown key. Allowed: use, dir, max_bytes, dtype."]),
        ({"cache": {"dtype": "bfloat16"}}, ["cache.dtype", "'float16' or 'float32'", "Received: 'bfloat16'"]),
        ({"cache": {"dir": ""}}, ["cache.dir", "at least 1 character"]),
        ({"cache": {"max_bytes": "20 boxes"}}, ["cache.max_bytes", "byte unit: boxes", "Received: '20 boxes'"]),
        ({"cache": {"max_bytes": "900kB"}}, ["cache.max_bytes", "1000000", "Received: '900kB'"]),
        (data(mean_subtraction="image") | {"backbone": {"name": "efficientnet_b0"}}, ["inside the network"]),
    ],
)
def test_mistakes_are_named_with_what_is_allowed_and_what_was_received(change, words):
    with pytest.raises(ConfigError) as caught:
        config_file.parse(BASE | change)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not re.search(r"[.?][.;]", str(caught.value).replace("...", ""))


@pytest.mark.parametrize("form", ["imagenett", "run:", "a.h5", "", "Imagenet"])
def test_weights_of_no_allowed_form_are_refused(form):
    with pytest.raises(ConfigError, match=rf"backbone\.weights: must be imagenet, none, run:ID.*Received: '{form}'"):
        config_file.parse(BASE | {"backbone": {"name": "mobilenet", "weights": form}})


@pytest.mark.parametrize("form", ["imagenet", "none", "run:digits", "dir/a.weights.h5", "a.keras"])
def test_weights_of_every_allowed_form_are_taken(form):
    assert config_file.parse(BASE | {"backbone": {"name": "mobilenet", "weights": form}}).backbone.weights == form


@pytest.mark.parametrize(
    ("views", "augment"), [(None, {}), (1, {}), (1, {"mixup": 0.2}), (2, {"flip": "both"}), (8, {"color": 0.1})]
)
def test_views_go_with_augmentation(views, augment):
    assert config_file.parse(BASE | data(views=views, augment=augment)).data.views == views


@pytest.mark.parametrize(
    ("size", "number"), [("20GB", 20 * 10**9), ("1.5 GB", 1_500_000_000), ("2GiB", 2 * 2**30), (5_000_000, 5_000_000)]
)
def test_sizes_are_bytes_or_words(size, number, tmp_path):
    tree = BASE | {"cache": {"max_bytes": size}}
    SCHEMA.validate(tree)
    loaded = config_file.parse(tree)
    assert loaded.cache.max_bytes == number
    assert load_text(tmp_path, config_file.dump(loaded)) == loaded


def test_a_cache_is_a_word_or_settings(tmp_path):
    assert load_text(tmp_path, TEXT + "cache: off\n").cache == config.Cache(use="off")
    assert load_text(tmp_path, TEXT, "cache=always").cache == config.Cache(use="always")
    loaded = load_text(tmp_path, TEXT + "cache: always\n", "cache.max_bytes=5GB", "cache.dir=kept")
    assert loaded.cache == config.Cache(use="always", dir="kept", max_bytes=5_000_000_000)
    assert (loaded.cache_dir, load_text(tmp_path, TEXT, "output_dir=out").cache_dir) == ("kept", "out/activations")
    for cache in ("off", {"use": "always", "dtype": "float32"}):
        SCHEMA.validate(BASE | {"cache": cache})
    assert not SCHEMA.is_valid(BASE | {"cache": "never"})


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match=r"seed.*data\.crop.*colour"):
        config_file.parse(BASE | {"seed": -1, "colour": 1} | data(crop=2.0))


def load_text(tmp_path, text, *overrides):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    return config_file.load(tmp_path / "c.yaml", list(overrides))


TEXT = "name: x\ndata: {source: folder, path: p}\nbackbone: {name: mobilenet}\n"


def test_yaml_numbers_and_words_mean_what_they_look_like(tmp_path):
    loaded = load_text(tmp_path, TEXT + "phases: [{epochs: 1, learning_rate: 1e-3}]\n", "data.classes=[no, yes]")
    assert loaded.phases[0].learning_rate == 1e-3
    assert loaded.data.classes == ["no", "yes"]


def test_overrides_reach_lists_and_missing_sections(tmp_path):
    loaded = load_text(
        tmp_path,
        TEXT + "phases: [{epochs: 1, learning_rate: 1e-3}]\n",
        "phases.0.epochs=7",
        "head.dropout=0.5",
        "data.augment.flip=both",
        "data.path=a=b",
    )
    assert (loaded.phases[0].epochs, loaded.head.dropout) == (7, 0.5)
    assert (loaded.data.augment.flip, loaded.data.path) == ("both", "a=b")


def test_overrides_reach_the_default_phases(tmp_path):
    loaded = load_text(tmp_path, TEXT, "phases.0.epochs=3")
    head, adapt = config.default_phases()
    assert loaded.phases == [head.model_copy(update={"epochs": 3}), adapt]


def test_overrides_below_a_word_keep_what_it_means(tmp_path):
    text = TEXT + "phases: [{epochs: 2, learning_rate: 1e-3, optimizer: sgd, schedule: cosine}]\n"
    loaded = load_text(
        tmp_path, text, "phases.0.schedule.warmup_epochs=1", "phases.0.optimizer.momentum=0.5",
        "phases.0.unfreeze.blocks=2",
    ).phases[0]  # fmt: skip
    assert loaded.schedule == config.Cosine(warmup_epochs=1)
    assert loaded.optimizer == config.SGD(momentum=0.5)
    assert loaded.unfreeze == config.Blocks(blocks=2)


@pytest.mark.parametrize(
    ("value", "path"), [("photos #1", "photos #1"), ("'photos' # new", "photos"), (" p ", "p"), ('"a b"', "a b")]
)
def test_words_in_overrides_are_taken_whole(tmp_path, value, path):
    assert load_text(tmp_path, TEXT, f"data.path={value}").data.path == path


@pytest.mark.parametrize("name", ["2024-13-45", "2024-01-02"])
def test_dates_are_words(tmp_path, name):
    assert load_text(tmp_path, TEXT.replace("name: x", f"name: {name}", 1)).name == name
    loaded = load_text(tmp_path, TEXT, f"name={name}")
    assert loaded.name == name
    assert load_text(tmp_path, config_file.dump(loaded)) == loaded


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", r"dotted\.key=value"),
        ("phases.9.epochs=1", "no list item"),
        ("a b=1", r"dotted\.key=value"),
        ("phases.first.epochs=1", "no list item"),
        ("data.classes.0.1=x", r"data\.classes.*valid list"),
        ("phases.0.schedule.warmup_epochs=1", r"phases\.0\.schedule\.name: required"),
        ("seed=[", "not valid YAML"),
        ("seed=!!int x", "not valid YAML"),
        ("seed=1.5", r"seed.*Received: 1\.5"),
    ],
)
def test_overrides_that_cannot_be_made_are_refused(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        load_text(tmp_path, TEXT + "phases: [{epochs: 1, learning_rate: 1e-3}]\n", override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nname: y\n", "duplicate key"),
        ("- a\n", "must be a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("", "must be a mapping"),
        (
            "data:\n\tsource: digits\n",
            r"The config .* is not valid YAML\. Line 2, column 1: .*: a tab, where YAML wants",
        ),
    ],
)
def test_files_that_are_not_a_config_are_refused(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load_text(tmp_path, text)


def test_an_override_below_a_list_item_that_is_a_word_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.classes\.0: Input should be a valid string"):
        load_text(tmp_path, TEXT, "data.classes=[a, b]", "data.classes.0.1=x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.yaml.*graft init"):
        config_file.load(tmp_path / "nope.yaml")


def test_the_schema_describes_every_key():
    schema = json.loads(config_file.schema())

    def undescribed(model, path):
        for key, field in model.get("properties", {}).items():
            if "description" not in field and "const" not in field and key != "name":
                yield f"{path}.{key}"

    missing = [*undescribed(schema, "run")]
    for name, model in schema["$defs"].items():
        missing += undescribed(model, name)
    assert missing == []


SCHEMA = jsonschema.Draft202012Validator(json.loads(config_file.schema()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_config(path):
    SCHEMA.validate(YAML(typ="safe", pure=True).load(path))
    SCHEMA.validate(YAML(typ="safe", pure=True).load(config_file.dump(config_file.load(path))))


@pytest.mark.parametrize("short", ["constant", "cosine", "plateau", "sgd", "adam", "adamw", "rmsprop"])
def test_the_schema_accepts_the_words_that_the_config_accepts(short):
    key = "schedule" if short in ("constant", "cosine", "plateau") else "optimizer"
    tree = BASE | {"phases": [{"epochs": 9, "learning_rate": 1e-3, "weight_decay": 1e-2, key: short}]}
    SCHEMA.validate(tree)
    config_file.parse(tree)


@pytest.mark.parametrize("change", [phase(schedule="step"), phase(optimizer="lion"), {"backbone": {"name": "resnet"}}])
def test_the_schema_refuses_other_words(change):
    assert not SCHEMA.is_valid(BASE | change)


def test_flat_names_are_the_keys_of_set():
    flat = config_file.parse(BASE | phase(unfreeze={"from": "conv_pw_12"})).flat()
    assert flat["phases.0.unfreeze.from"] == "conv_pw_12"
    assert flat["data.augment.flip"] == "none"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_any_tree_is_parsed_or_refused_in_words(tree):
    with pytest.raises(ConfigError, match="cannot be used"):
        config_file.parse(BASE | {"head": {"dropout": tree, "no such key": 1}})


def test_every_backbone_gives_a_valid_config_by_default():
    for name, row in BACKBONES.items():
        config_file.parse(BASE | {"backbone": {"name": name, "weights": "imagenet" if row.imagenet else "none"}})
