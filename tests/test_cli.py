"""The command line, in processes of its own."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.activations import FILE, Store
from pipeline.commands import COMMANDS
from pipeline.decoded import pixel_settings
from pipeline.pixels import PixelSpec

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


def test_each_command_is_a_file_and_in_the_table():
    in_table = [command.__name__ for commands in COMMANDS.values() for command in commands]
    assert sorted(in_table) == sorted(path.stem for path in (ROOT / "pipeline" / "commands").glob("[!_]*.py"))


@pytest.mark.parametrize(
    "name", ["data", "screen", "lr", "run", "report", "compare", "sweep", "sync", "retrain", "schedule", "freeze-test"]
)
def test_what_reports_progress_can_be_quiet(name):
    options = {word for parameter in typer.main.get_command(app).commands[name].params for word in parameter.opts}
    assert {"--quiet", "-q"} <= options


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


def test_a_narrow_terminal_gets_every_name_whole(monkeypatch):
    from rich.console import Console

    from pipeline.__main__ import app
    from pipeline.backbones import BACKBONES

    for width, narrow in ((80, True), (250, False)):
        monkeypatch.setattr("pipeline.commands.backbones.out", lambda width=width: Console(width=width))
        lines = CliRunner().invoke(app, ["backbones"]).stdout.splitlines()
        assert set(BACKBONES) <= {word for line in lines for word in line.split()[:1]}
        assert ("The terminal is too narrow for" in lines[-1]) == narrow
        assert max(map(len, lines)) <= width
        assert len(lines) < 70


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
        (["run", CONFIGS / "folder.yaml", "--set", "data.image_size=tall"], 2, "What each key takes: graft schema"),
        (["run", CONFIGS / "folder.yaml", "--set", "phases.9.epochs=1"], 2, "Count the items from 0."),
        (["run", CONFIGS / "folder.yaml", "--set", "data.path=["], 2, "is not valid YAML."),
        (["run", CONFIGS / "folder.yaml", "--set", "backbone.weights=none"], 1, "pictures"),
        (["run"], 2, "Give either a CONFIG, or --resume RUN_DIR"),
        (["models", "ants"], 1, "Give the output_dir of the runs with --output-dir"),
        (["rollback", "ants", "--reason", "bad"], 2, "Give the export.dir of its config with --export."),
        (["watch", "nowhere", "--samples", "nowhere"], 1, "Give the folder with the version number"),
        (["init", "nowhere"], 1, "nowhere"),
        (["init", ".", "--backbone", "zzz"], 2, "There is no backbone 'zzz'. Give one of: lenet5, "),
        (["init", ".", "--backbone", "ResNet50V2"], 2, "There is no backbone 'ResNet50V2'. Did you mean resnet50_v2?"),
        (["screen", CONFIGS / "digits-0-4.yaml", "--backbones", "lenet,alexnet"], 2, "Did you mean lenet5?"),
        (["backbones", "mobilnet"], 2, "There is no backbone 'mobilnet'. Did you mean mobilenet?"),
        (["predict", "nowhere", "x.png"], 1, "not a model exported by graft"),
        (["sync", "nowhere"], 1, "nowhere"),
        (["ui", "nowhere"], 1, "nowhere holds no mlflow.db"),
        (["cache"], 1, "neither runs/activations nor its folder activations holds an activations.sqlite"),
        (["cache", "nowhere", "--keep", "0"], 1, "Give the output_dir of a run"),
        (["cache", "--keep", "much"], 2, "a size such as 2GB, 500MB or 0. Received: 'much'"),
        (["cache", "--keep", "-1"], 2, "Received: '-1'"),
        (["cache", "--unused-for", "3m"], 2, "days or hours such as 30d or 12h. Received: '3m'"),
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


def test_names_that_the_output_cannot_encode_are_escaped(tmp_path):
    folder = tmp_path / "ants \N{BUG}"
    for label in ("large", "\N{SNAIL}"):
        (folder / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / label / "1.png")
    result = graft("init", folder.name, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "ants \\U0001f41b" in result.stdout


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


@pytest.fixture
def store(tmp_path):
    """A folder with an output_dir whose store holds two cuts of a network, and one of another not used for 40 days."""

    def description(backbone, cut, shape, **options):
        return {"backbone": backbone, "options": options, "cut": cut, "shape": shape, "dtype": "float16",
                "engine": "openvino"}  # fmt: skip

    folder = tmp_path / "runs" / "activations"
    with Store(folder, 1 << 30, print) as store:
        for number, (backbone, cut, shape, options, count) in enumerate([
            ("lenet5", "c5", [120], {}, 3),
            ("mobilenet", "conv_pw_9_relu", [14, 14, 128], {"alpha": 0.25}, 40),
            ("mobilenet", "conv_pw_13_relu, avg_pool", [256], {"alpha": 0.25}, 1_200),
        ]):  # fmt: skip
            space = store.space(description(backbone, cut, shape, **options))
            value = bytes(2 * shape[0] * (shape[1] * shape[2] if shape[1:] else 1))
            store.write(space, [((bytes([number]) + i.to_bytes(31, "big"), b""), value) for i in range(count)])
    with closing(sqlite3.connect(folder / FILE)) as db, db:
        long_ago = int((time.time() - 40 * 24 * 3600) * 1e6)
        db.execute("UPDATE activation SET used = ? WHERE bytes = 240", (long_ago,))
    return tmp_path


@pytest.mark.parametrize("where", [[], ["runs"], ["runs/activations"]])
def test_what_is_kept_is_listed(where, store):
    result = graft("cache", *where, cwd=store)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert [line.split() for line in result.stdout.splitlines()[:-1]] == [
        ["frozen", "up", "to", "count", "size", "shape", "dtype", "engine", "last", "used"],
        ["mobilenet", "alpha=0.25"],
        ["conv_pw_13_relu,", "avg_pool", "1,200", "614.4", "kB", "256", "float16", "openvino", "just", "now"],
        ["conv_pw_9_relu", "40", "2.0", "MB", "14x14x128", "float16", "openvino", "just", "now"],
        ["lenet5"],
        ["c5", "3", "720", "bytes", "120", "float16", "openvino", "40", "d", "ago"],
        ["in", "all", "1,243", "2.6", "MB"],
    ]
    assert result.stdout.splitlines()[-1].startswith("runs/activations/activations.sqlite: ")


def test_what_is_kept_of_pixels_has_a_name(tmp_path):
    pixels = pixel_settings(PixelSpec(224, 224, 0.875, 100))
    with Store(tmp_path / "runs" / "activations", 1 << 30, print) as store:
        for number, (name, settings) in enumerate([("thumbnails", {"side": 16}), ("measures", {"version": 1})]):
            space = store.space({"of": name, **settings, "pixels": pixels})
            store.write(space, [((bytes([i]) * 32, b""), bytes(10 + number)) for i in range(3)])
    result = graft("cache", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    heading, *rows = [line.split() for line in result.stdout.splitlines()[1:4]]
    assert heading == ["no", "network:", "pixels", pixels[:8]]
    assert sorted(rows) == [
        ["measures", "3", "33", "bytes", "-", "-", "-", "just", "now"],
        ["thumbnails", "3", "30", "bytes", "-", "-", "-", "just", "now"],
    ]
    assert "?" not in result.stdout


def test_what_is_kept_as_json(store):
    result = graft("cache", "--json", cwd=store)
    shown = json.loads(result.stdout)
    assert set(shown) == {"file", "bytes", "removed", "held"}
    assert shown["removed"] is None
    assert [(part["activations"], part["bytes"]) for part in shown["held"]] == [
        (1200, 614_400), (40, 2_007_040), (3, 720),
    ]  # fmt: skip
    assert shown["held"][2]["of"]["cut"] == "c5"
    assert datetime.fromisoformat(shown["held"][0]["last_used"]).tzinfo is not None


def test_what_was_not_used_for_long_is_removed(store):
    result = graft("cache", "--unused-for", "30d", cwd=store)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("removed 3 activations, ")
    assert "lenet5" not in result.stdout
    assert "1,240" in result.stdout
    assert graft("cache", "--unused-for", "1h", cwd=store).stdout.startswith("removed 0 activations, ")


def test_the_least_recently_used_is_removed_until_the_rest_fits(store):
    before = json.loads(graft("cache", "--json", cwd=store).stdout)
    shown = json.loads(graft("cache", "--keep", "1.5MB", "--json", cwd=store).stdout)
    assert shown["held"][0]["of"]["cut"] == "conv_pw_13_relu, avg_pool"
    assert shown["held"][0]["activations"] == 1200
    assert shown["removed"]["activations"] + sum(part["activations"] for part in shown["held"]) == 1243
    assert shown["bytes"] < 1_600_000  # with the log and its index
    assert shown["removed"]["bytes"] > 1_000_000
    assert before["bytes"] - shown["bytes"] >= shown["removed"]["bytes"] - 100_000


def test_the_store_is_emptied_and_a_look_makes_no_new_one(store):
    result = graft("cache", "runs", "--keep", "0", cwd=store)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("removed 1,243 activations, ")
    assert result.stdout.endswith("runs/activations/activations.sqlite: nothing is kept\n")
    again = graft("cache", "runs", cwd=store)
    assert again.returncode == 1
    assert not (store / "runs" / "activations" / FILE).exists()


def test_a_look_at_the_store_imports_nothing_heavy(store):
    program = (
        "import sys; from pipeline.__main__ import app\n"
        f"try: app(['cache', {str(store / 'runs')!r}, '--keep', '1GB'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'numpy', 'openvino', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "lenet5" in result.stdout


@pytest.mark.parametrize("own", [True, False])
def test_the_summary_says_where_to_look(own, tmp_path, monkeypatch, capsys):
    from pipeline.artifacts import BackboneIdentity, RunRecord
    from pipeline.commands.run import print_summary
    from pipeline.evaluate import evaluate

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db" if own else "https://mlflow.example:5000"
    record = RunRecord(
        name="ants", status="finished", run_dir=str(tmp_path / "runs" / "ants" / "1"), started_at="", tracking_uri=uri,
        backbone=BackboneIdentity(name="mobilenet", options={}), export_dir=str(tmp_path / "export" / "ants" / "1"),
    )  # fmt: skip
    labels = np.array([0, 1])
    print_summary(record, evaluate(np.eye(2), labels, np.eye(2), labels, ["ants", "bees"]))
    shown = capsys.readouterr().out
    assert "accuracy 1.0000" in shown
    assert "top5" not in shown
    assert f"MLflow      {uri}" in shown
    assert (" ui runs" in shown) == own


@pytest.mark.slow
def test_ui_stops_at_once_with_one_word_and_leaves_no_process(uri, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "ui", str(tmp_path), "--port", str(port)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        _answers(f"http://127.0.0.1:{port}/health", process)
        servers = psutil.Process(process.pid).children(recursive=True)
        assert len(servers) == 2  # MLflow's command and one worker
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.endswith("stopped\n")
    assert "INFO" not in said
    assert "Traceback" not in said
    assert not [server for server in servers if server.is_running()]


def _answers(url, process):
    """Waits until a server does."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url) as answer:
            assert answer.status == 200
            return
        time.sleep(0.1)
    pytest.fail("graft ui serves nothing")


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
    log = (Path(record["run_dir"]) / "run.log").read_text()
    said = [line.partition(" ")[2] for line in log.splitlines()]
    assert [line for line in result.stderr.splitlines() if line not in said] == []
    assert "finished" in said

    Image.new("L", (8, 8), 0).save(tmp_path / "zero.png")
    for kind in ("table", "csv", "jsonl"):
        labelled = graft("predict", record["export_dir"], tmp_path / "zero.png", "--format", kind, cwd=tmp_path)
        assert labelled.returncode == 0, labelled.stderr
        assert "zero.png" in labelled.stdout
        assert labelled.stderr == ""

    refused = graft("sync", record["run_dir"], cwd=tmp_path)
    assert refused.returncode == 1
    assert "127.0.0.1:9" in refused.stderr
