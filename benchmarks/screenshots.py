"""The pictures of MLflow's pages in docs/mlflow.md: runs on handwritten digits, and a browser that goes through them.

    python -m benchmarks.screenshots mlflow

It takes a few minutes, needs Chromium and chromedriver, and writes docs/images/mlflow-*.png.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.mlflow_client import connect, default_uri, experiment_pages

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
SIDE = 32
_CLASSES = 5
_SHOWN = "/home/you/graft"
_SECONDS = 60
# MLflow's pages as somebody has them who has used them before.
_USED_BEFORE = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}
_TIDY = """
    const [from, to] = arguments, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (const tools of document.querySelectorAll(".modebar")) tools.remove();  // A chart shows them to a mouse alone.
    while (walk.nextNode()) walk.currentNode.nodeValue = walk.currentNode.nodeValue.replaceAll(from, to);
"""


def fill(folder: Path) -> None:
    """Three runs with other settings, a first champion, and a challenger on more pictures, in `folder/runs`."""
    scans = load_digits()
    chosen = [(i, label) for i, label in enumerate(scans.target.tolist()) if label < _CLASSES]

    def write(count: int) -> None:
        for i, label in chosen[:count]:
            path = folder / "pictures" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (scans.images[i] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((SIDE, SIDE)).save(path)

    kept = [f"output_dir={folder}/runs", f"export.dir={folder}/export", "tracking.experiment=digits", "name=digits"]
    for changed in ([], ["phases.0.learning_rate=1e-2"], ["head.dropout=0.3", "data.augment.rotation=10"]):
        _graft("run", [*kept, *changed])
    live = [
        *kept, "name=digits-live", "data.source=folder", f"data.path={folder}/pictures", "data.classes=null",
        "data.test_fraction=0.3",
    ]  # fmt: skip
    for count in (100, len(chosen)):
        write(count)
        _graft("retrain", live)


def _graft(command: str, settings: list[str]) -> None:
    overrides = [part for setting in settings for part in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "pipeline", command, "configs/digits-0-4.yaml", *overrides],
        cwd=ROOT, env=os.environ | {"LOGNAME": "you"}, check=True, stdout=sys.stderr,
    )  # fmt: skip


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """MLflow's own server; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [*command, "--backend-store-uri", default_uri(runs)], env=os.environ | own, start_new_session=True
    )
    try:
        deadline = time.monotonic() + _SECONDS
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Visitor:
    """Somebody who looks at MLflow's pages, and takes pictures."""

    def __init__(self, server: str, folder: Path, images: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.binary_location = "/usr/bin/chromium"
        self._browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        self._server, self._folder, self._images = server, folder, images
        self._browser.get(f"{server}/health")
        for key, value in _USED_BEFORE.items():
            self._browser.execute_script("localStorage.setItem(...arguments)", key, value)

    def open(self, page: str, *sees: str, height: int = 900) -> None:
        """Opens a page, and waits until it shows what is sought, each by XPath."""
        self._browser.set_window_size(1400, height)
        self._browser.get("about:blank")  # MLflow's pages differ by what follows the #, which alone loads nothing.
        self._browser.get(f"{self._server}{page}")
        for xpath in sees:
            self._wait(xpath)

    def click(self, xpath: str) -> None:
        self._wait(xpath).click()

    def write(self, xpath: str, text: str) -> None:
        self._wait(xpath).send_keys(text)

    def take(self, name: str) -> None:
        """Saves what is seen, without the name of this machine's folder."""
        time.sleep(3)  # Charts are drawn, and drawers slide in.
        self._browser.execute_script(_TIDY, str(self._folder), _SHOWN)
        picture = Image.open(BytesIO(self._browser.get_screenshot_as_png())).convert("RGB")
        path = self._images / f"mlflow-{name}.png"
        picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")

    def leave(self) -> None:
        self._browser.quit()

    def _wait(self, xpath: str) -> Any:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self._browser, _SECONDS).until(lambda browser: browser.find_element(By.XPATH, xpath))


def look(server: str, folder: Path, images: Path) -> None:
    """Goes through the pages in a person's order."""
    uri = default_uri(folder / "runs")
    client = connect(uri)
    compare = experiment_pages(uri)["digits"]
    experiment = client.get_experiment_by_name("digits").experiment_id
    runs = client.search_runs([experiment], "tags.`mlflow.source.name` = 'graft run'")
    run = f"/#/experiments/{experiment}/runs/{runs[0].info.run_id}"
    champion = client.get_model_version_by_alias("digits-live", "champion")
    visitor = Visitor(server, folder, images)
    try:
        visitor.open(compare, "//*[text()='test/accuracy']")
        visitor.take("runs")
        visitor.open(f"{compare}&compareRunsMode=CHART", "//*[text()='test/accuracy']", height=1350)
        visitor.write("//input[@placeholder='Search metric charts']", "^(train|validation)/(accuracy|loss)")
        visitor.take("charts")
        visitor.open(run, "//*[contains(., 'test pictures are right')]", height=1100)
        visitor.click(_inner("Show more"))
        visitor.take("run")
        visitor.click(_inner(runs[0].inputs.dataset_inputs[0].dataset.digest))
        visitor.take("dataset")
        visitor.open(f"{run}/system-metrics", "//*[text()='cpu_utilization_percentage']")
        visitor.take("system")
        visitor.open(f"{run}/artifacts/report.html", "//iframe")
        visitor.take("artifacts")
        visitor.open("/#/models/digits-live", _inner("models:/"), height=1000)
        visitor.take("model")
        visitor.open(f"/#/models/digits-live/versions/{champion.version}", _inner("Schema"), height=1400)
        visitor.take("version")
    finally:
        visitor.leave()


def _inner(text: str) -> str:
    """The innermost element that shows a text."""
    return f"//body//*[contains(., '{text}') and not(./*[contains(., '{text}')])]"


def main() -> None:
    assert sys.argv[1:] == ["mlflow"], "python -m benchmarks.screenshots mlflow"
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name))
        with served(Path(name) / "runs") as server:
            look(server, Path(name), IMAGES)


if __name__ == "__main__":
    main()
