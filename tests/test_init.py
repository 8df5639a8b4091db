from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import config, config_file
from pipeline.backbones import BACKBONES
from pipeline.errors import DataError
from pipeline.init import folder_config
from pipeline.policy import suggest

TWO = {"ants": 194, "bees": 203}


def read(text: str, folder: Path) -> config.RunConfig:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return config_file.load(path)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_network_gets_a_config_that_loads(backbone, tmp_path):
    loaded = read(folder_config(Path("pictures"), backbone, TWO), tmp_path)
    assert loaded.backbone.name == backbone
    assert loaded.backbone.weights == ("imagenet" if BACKBONES[backbone].imagenet else "none")
    assert loaded.image_size == BACKBONES[backbone].default_size


@pytest.mark.parametrize("pictures", [5, 100, 900, 20_000, 300_000])
def test_the_config_is_the_suggestion(pictures, tmp_path):
    loaded = read(folder_config(Path("pictures"), "mobilenet", {"ants": pictures, "bees": pictures}), tmp_path)
    suggestion = suggest(2 * pictures, 2)
    assert (loaded.phases, loaded.data.augment) == (suggestion.phases, suggestion.augment)
    assert loaded.data.views == suggestion.views == (None if pictures == 300_000 else 8)
    assert loaded.data.source == "folder"


def test_from_scratch_each_epoch_augments_anew(tmp_path):
    assert read(folder_config(Path("pictures"), "alexnet", TWO), tmp_path).data.views is None


def test_the_header_has_the_command_the_counts_and_the_reason():
    text = folder_config(Path("pictures"), "mobilenet", TWO)
    assert text.startswith("# graft run ")
    assert "# Pictures per class: ants 194, bees 203" in text
    assert "397 pictures, about 198 a class" in text


def test_only_the_smallest_of_many_classes_are_listed(tmp_path):
    text = folder_config(Path("pictures"), "mobilenet", {f"kind-{i}": 1000 - i for i in range(200)})
    assert "kind-199 801" in text
    assert "kind-0 1" not in text
    assert "(the 30 smallest)" in text
    read(text, tmp_path)


def test_each_key_has_a_comment():
    lines = folder_config(Path("pictures"), "mobilenet", TWO).splitlines()
    keys = [i for i, line in enumerate(lines) if line.strip() and line.strip()[0] not in "#-"]
    sections = tuple(config.Phase.model_fields)  # phases are commented once, above the list
    bare = [lines[i] for i in keys if not lines[i].strip().startswith(sections) and "#" not in lines[i - 1]]
    assert bare == []
    assert "  # epochs: Passes over the training split." in lines


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1).filter(lambda text: "\0" not in text), st.text(min_size=1))
@example("a folder: with 'both' \"quotes\" # and more", "wasps\n- 1")
@example("~", "x")
@example("123", "x")
@example("2024-01-01", "x")
@example("été/写真\u2028\x85\ufeff🐜", "\x85\u2028")
@example("trailing space ", "# ")
@example("x" * 500 + " y" * 300, "x")
@example("C:\\pictures", "x")
def test_any_path_and_class_survive(tmp_path_factory, name, label):
    text = folder_config(Path(name), "mobilenet", {label: 30, label + "2": 40})
    loaded = read(text, tmp_path_factory.getbasetemp())
    assert loaded.data.path == str(Path(name))


@pytest.mark.parametrize("path", ["2024", "null", "été", "...", ".hidden", "a b/c d", "true", "-", "1e5"])
def test_the_name_comes_from_the_folder(path, tmp_path):
    name = read(folder_config(Path(path), "mobilenet", TWO), tmp_path).name
    assert name == {"été": "t", "...": "pictures", "-": "pictures", ".hidden": "hidden", "a b/c d": "c-d"}.get(
        path, path
    )


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(DataError, match=r"at least two classes.*Received 1\."):
        folder_config(Path("pictures"), "mobilenet", {"ants": 3})
