"""The command line, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


def graft(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1", **environment},
    )  # fmt: skip


def test_help_needs_no_heavy_import(tmp_path):
    program = (
        "import sys; from pipeline.__main__ import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'numpy', 'sklearn', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "predict" in result.stdout


@pytest.mark.parametrize("command", ["backbones", "schema"])
def test_listings_need_no_tensorflow(command, tmp_path):
    program = (
        "import sys; from pipeline.__main__ import app\n"
        f"try: app(['{command}'])\n"
        "except SystemExit: pass\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_table_of_backbones_names_every_one(tmp_path):
    from pipeline.backbones import BACKBONES

    words = graft("backbones", cwd=tmp_path).stdout.split()
    assert set(BACKBONES) <= set(words)


def test_one_backbone_shows_its_blocks(tmp_path):
    result = graft("backbones", "mobilenet", cwd=tmp_path)
    assert "14 blocks" in result.stdout
    assert "{blocks: 2}   conv_pw_11_relu" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "nope.yaml"], 2, "Cannot read the config nope.yaml"),
        (["run", CONFIGS / "folder.yaml", "--set", "data.colour=1"], 2, "data.colour: unknown key"),
        (["run", CONFIGS / "folder.yaml", "--set", "backbone.weights=none"], 1, "pictures"),
        (["init", "nowhere"], 1, "nowhere"),
        (["init", ".", "--backbone", "resnet"], 2, "There is no backbone 'resnet'"),
        (["backbones", "resnet"], 2, "There is no backbone 'resnet'"),
        (["predict", "nowhere", "x.png"], 1, "not a model exported by graft"),
        (["sync", "nowhere"], 1, "nowhere"),
        (["ui", "nowhere"], 1, "nowhere holds no mlflow.db"),
        (
            ["run", CONFIGS / "digits-0-4.yaml", "--set", f"output_dir={__file__}/runs"],
            2,
            "output_dir must be a folder",
        ),
    ],
)
def test_mistakes_are_one_paragraph(arguments, code, words, tmp_path):
    result = graft(*arguments, cwd=tmp_path)
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_init_writes_a_config_that_loads(tmp_path):
    from pipeline.config_file import load

    for label in ("cat", "dog"):
        (tmp_path / "my pets" / label).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "my pets" / label / f"{i}.png")
    result = graft("init", "my pets", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (tmp_path / "my.yaml").write_text(result.stdout, encoding="utf-8")
    loaded = load(tmp_path / "my.yaml")
    assert loaded.data.path == "my pets"
    assert loaded.backbone.name == "mobilenet_v2"


@pytest.mark.parametrize("own", [True, False])
def test_the_summary_says_where_to_look(own, tmp_path, monkeypatch, capsys):
    from pipeline.__main__ import _print_summary
    from pipeline.artifacts import BackboneIdentity, RunRecord

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db" if own else "https://mlflow.example:5000"
    record = RunRecord(
        name="ants", status="finished", run_dir=str(tmp_path / "runs" / "ants" / "1"), started_at="", tracking_uri=uri,
        backbone=BackboneIdentity(name="mobilenet", options={}), export_dir=str(tmp_path / "export" / "ants" / "1"),
    )  # fmt: skip
    _print_summary(record)
    shown = capsys.readouterr().out
    assert f"MLflow      {uri}" in shown
    assert (" ui runs" in shown) == own


@pytest.mark.slow
def test_run_and_predict_with_mlflow_away(tmp_path):
    result = graft(
        "run", CONFIGS / "digits-0-4.yaml", "--json", "--set", "phases.0.epochs=2",
        "--set", "tracking.uri=http://127.0.0.1:9", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "retracing" not in result.stderr
    assert "WARNING" not in result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert set(record) == {"run_dir", "mlflow_run_id", "export_dir", "metrics", "seconds"}
    assert {"test_accuracy", "test_loss", "test_macro_f1", "test_ece"} <= set(record["metrics"])
    assert record["mlflow_run_id"] is None
    assert "graft sync" in result.stderr
    assert "http://127.0.0.1:9" in result.stdout
    assert "graft ui" not in result.stdout

    Image.new("L", (8, 8), 0).save(tmp_path / "zero.png")
    for kind in ("table", "csv", "jsonl"):
        labelled = graft("predict", record["export_dir"], tmp_path / "zero.png", "--format", kind, cwd=tmp_path)
        assert labelled.returncode == 0, labelled.stderr
        assert "zero.png" in labelled.stdout
        assert labelled.stderr == ""

    refused = graft("sync", record["run_dir"], cwd=tmp_path)
    assert refused.returncode == 1
    assert "127.0.0.1:9" in refused.stderr
