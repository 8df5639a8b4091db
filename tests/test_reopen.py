"""A run that has ended, opened again: `graft report` and what it is made of."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline import config_file, report
from pipeline.__main__ import app
from pipeline.artifacts import RunRecord
from pipeline.pictures import read_again
from pipeline.reopen import network_of
from pipeline.run import run
from tests.networks import QUIET

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run on a few pictures of two colours: its folder, and its data's."""
    here = tmp_path_factory.mktemp("ended")
    rng = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (here / "data" / label).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 150, (40, 48, 3)).astype(np.uint8)
            pixels[..., channel] += 60
            Image.fromarray(pixels).save(here / "data" / label / f"{number}.png")
    config = here / "config.yaml"
    config.write_text(
        f"""
        name: colours
        data: {{source: folder, path: {here}/data, image_size: 32, mean_subtraction: image, batch_size: 8}}
        backbone: {{name: mobilenet, weights: none, options: {{alpha: 0.25}}}}
        phases: [{{epochs: 2, learning_rate: 1e-3, unfreeze: {{fraction: 0.5}}}}]
        output_dir: {here}/runs
        export: {{dir: {here}/export}}
        cache: off
        """
    )
    record = run(config_file.load(config, []), QUIET)
    return Path(record.run_dir), here / "data"


@pytest.fixture
def copied(ended, tmp_path):
    """The same, to be spoilt."""
    run_dir, _ = ended
    return Path(shutil.copytree(run_dir, tmp_path / run_dir.name))


def test_the_network_is_the_one_that_was_trained(ended):
    run_dir, _ = ended
    of = report.read(run_dir)
    network = network_of(run_dir, of.config, len(of.outputs.classes))
    seen = read_again(of.config.data, of.manifest.pixels, of.outputs.names, of.outputs.digests)
    assert set(seen) == set(of.outputs.digests)
    images = np.stack([seen[digest] for digest in of.outputs.digests])
    np.testing.assert_allclose(network.model(images.astype(np.float32), training=False), of.outputs.logits, atol=1e-4)


def test_the_report_drawn_again_is_the_same(ended, copied):
    run_dir, _ = ended
    result = CliRunner().invoke(app, ["report", str(copied)])
    assert result.exit_code == 0, result.output
    again = (copied / "report.html").read_text().replace(str(copied), str(run_dir))
    first = (run_dir / "report.html").read_text()
    # What the run did after the report was drawn is in the second one alone: how long that took.
    assert again.count("<img") == first.count("<img") > 10
    assert again.count("<svg") == first.count("<svg")
    for end in ("Charts</h2>", "What it took</h2>"):
        assert end in again
    body = slice(first.index("What is taken for what"), first.index("What the network sees</h2>"))
    assert first[body] in again


def test_pictures_that_changed_are_left_out_with_a_warning(ended, copied):
    run_dir, data = ended
    of = report.read(run_dir)
    victim = data / of.outputs.names[0]
    kept = victim.read_bytes()
    try:
        Image.new("RGB", (48, 40)).save(victim)
        result = CliRunner().invoke(app, ["report", str(copied)])
    finally:
        victim.write_bytes(kept)
    assert result.exit_code == 0, result.output
    assert "are gone from the data, or are no longer what was tested on" in result.stderr
    assert f'alt="Test picture {of.outputs.names[0]} ' not in (copied / "report.html").read_text()


def test_without_the_data_the_report_has_no_pictures(ended, copied):
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("/data", "/gone"))
    result = CliRunner().invoke(app, ["report", str(copied)])
    assert result.exit_code == 0, result.output
    assert "The report shows no pictures." in result.stderr
    assert "no longer where the run read them" in (copied / "report.html").read_text()


def test_without_weights_there_is_no_report(copied):
    (copied / "head.weights.h5").unlink()
    result = CliRunner().invoke(app, ["report", str(copied)])
    assert result.exit_code == 1
    assert "head.weights.h5" in result.stderr
    assert "Traceback" not in result.output


def test_what_repeats_the_run_goes_to_where_it_was_started(ended):
    run_dir, _ = ended
    there = shlex.quote(str(Path.cwd()))
    assert report.read(run_dir).command == f"cd {there} && graft run {shlex.quote(str(run_dir / 'config.yaml'))}"


def test_a_run_is_found_by_its_name(ended):
    run_dir, _ = ended
    output_dir = run_dir.parent.parent
    page = run_dir / "report.html"
    drawn = page.stat().st_mtime_ns
    result = CliRunner().invoke(app, ["report", "colours", "--output-dir", str(output_dir)])
    assert result.exit_code == 0, result.output
    assert page.stat().st_mtime_ns > drawn
    result = CliRunner().invoke(app, ["report", "colors", "--output-dir", str(output_dir)])
    assert result.exit_code == 2
    assert "colors is not a run. Did you mean colours?" in result.stderr


def test_a_folder_of_something_else_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path} is not a run. A run is its folder" in result.stderr


def test_pictures_that_an_earlier_run_learned_from_are_told(copied, tmp_path):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    shutil.copy(copied / "run.json", earlier)
    record = RunRecord.read(copied / "run.json").model_copy(update={"started_from": str(earlier)})
    record.write(copied / "run.json")
    lines = (copied / "splits.csv").read_text()
    tested = lines.count(",test,")
    (earlier / "splits.csv").write_text(lines)  # The same test pictures, none of them learned from.
    assert report.read(copied).leaks == ""
    (earlier / "splits.csv").write_text(lines.replace(",test,", ",train,"))
    assert f"those of {earlier}, were trained or tuned on {tested} of these" in report.read(copied).leaks
    (earlier / "splits.csv").unlink()
    assert f"go back to {earlier}, whose list of pictures is gone" in report.read(copied).leaks
