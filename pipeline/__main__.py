"""The command line. TensorFlow and MLflow are imported by the commands that need them, when they need them."""

import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import filesize
from rich.markup import escape
from rich.table import Table

from pipeline import lifecycle
from pipeline.cli import Overrides, errors_in_words, graft, out, shown, stop_in_order
from pipeline.console import Console
from pipeline.errors import CacheError, ConfigError, DataError, TrackingError
from pipeline.quiet import import_tensorflow

if TYPE_CHECKING:
    from pipeline.activations import Held

app = typer.Typer(
    help="Pictures and an ImageNet-pretrained network in, a tracked, exported classifier out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


def _serve_option(name: str, text: str, **settings: Any) -> Any:
    """An option of `graft serve`, which containers set by environment variables."""
    variable = f"GRAFT_SERVE_{name.replace('-', '_').upper()}"
    return typer.Option(f"--{name}", help=text, envvar=variable, show_envvar=False, **settings)


ExportDir = Annotated[Path, typer.Argument(metavar="EXPORT_DIR", help="An exported model: export/NAME/VERSION.")]


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A YAML file; graft init writes one.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Go on with a run that was stopped or killed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")] = False,
) -> None:
    """Train, evaluate, export and record a classifier."""
    with errors_in_words():
        from pipeline.config_file import load

        if (config is None) == (resume is None) or (resume is not None and overrides):
            raise ConfigError("Give either a CONFIG, or --resume RUN_DIR, whose config it goes on with.")
        stop_in_order()
        loaded = load(config, overrides) if config is not None else None
        import_tensorflow()
        from pipeline.recording import config_of
        from pipeline.run import run as run_pipeline

        if loaded is None:
            assert resume is not None
            loaded = config_of(resume.resolve())
        record = run_pipeline(loaded, Console(), resume and resume.resolve())
        _print_summary(record)
        if as_json:
            keys = ("run_dir", "mlflow_run_id", "export_dir", "metrics", "seconds")
            print(json.dumps({key: getattr(record, key) for key in keys}))


@app.command()
def predict(
    export_dir: ExportDir,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_DIR...", help="Pictures, or folders of pictures.")],
    output: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.TABLE,
) -> None:
    """Label pictures with an exported model."""
    with errors_in_words():
        from pipeline import predict as prediction
        from pipeline.artifacts import read_manifest

        classes = read_manifest(export_dir).classes
        import_tensorflow()
        # File names may hold what the terminal's encoding has not; and who reads a pipe sees each picture in its turn.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        found = prediction.pictures(images)
        unusable = []

        def labelled() -> Iterator[prediction.Prediction]:
            for result in prediction.predict(export_dir, found):
                unusable.append(result.error is not None)
                yield result

        results = labelled()
        match output:
            case Format.CSV:
                prediction.write_csv(results, classes, sys.stdout)
            case Format.JSONL:
                prediction.write_jsonl(results, sys.stdout)
            case Format.TABLE:
                table = Table("picture", "label", "probability", box=None, header_style="bold")
                for result in results:
                    what = (
                        escape(result.label) if result.label is not None else f"[red]{escape(result.error or '')}[/red]"
                    )
                    table.add_row(escape(result.path), what, "" if result.score is None else f"{result.score:.3f}")
                out().print(table)
        if all(unusable):
            raise DataError("None of the pictures could be used.")


@app.command()
def backbones(
    name: Annotated[str | None, typer.Argument(help="Show this network's blocks and the layers to cut at.")] = None,
) -> None:
    """List the networks: input size, weights, preprocessing contract and where each can be cut."""
    with errors_in_words():
        from pipeline.backbones import BACKBONES

        if name is not None:
            if name not in BACKBONES:
                raise ConfigError(f"There is no backbone {name!r}. Allowed: {', '.join(BACKBONES)}.")
            import_tensorflow()
            _print_blocks(name)
            return
        table = Table("name", "input", "smallest", "weights", "preprocessing", "cut", box=None, header_style="bold")
        family = None
        for row in BACKBONES.values():
            if row.family != family:
                family = row.family
                table.add_row(f"[dim]{family}[/dim]")
            smallest = "fixed" if row.fixed_size else str(row.min_size)
            weights = "imagenet" if row.imagenet else "none"
            table.add_row(row.name, str(row.default_size), smallest, weights, row.contract, row.cuts)
        out().print(table)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of class folders.")],
    backbone: Annotated[str, typer.Option(help="A name from graft backbones.")] = "mobilenet_v2",
) -> None:
    """Print a commented config for a folder of pictures: graft init DIR > my.yaml."""
    with errors_in_words():
        from pipeline.backbones import BACKBONES
        from pipeline.config import Data
        from pipeline.init import folder_config
        from pipeline.sources import open_source

        if backbone not in BACKBONES:
            raise ConfigError(f"There is no backbone {backbone!r}. Allowed: {', '.join(BACKBONES)}.")
        source = open_source(Data(source="folder", path=str(folder)))
        counts = dict.fromkeys(source.classes, 0)
        for example in source.examples():
            counts[example.label] += 1
        print(folder_config(folder, backbone, counts), end="")


@app.command()
def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    with errors_in_words():
        from pipeline.config_file import schema as json_schema

        print(json_schema())


@app.command()
def cache(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A store's folder, or the output_dir of the runs that fill it.")
    ] = Path("runs/activations"),
    keep: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Keep this much, e.g. 2GB: the least recently used goes first. 0: nothing."),
    ] = None,
    unused_for: Annotated[
        str | None, typer.Option(metavar="AGE", help="Remove what was not used for so long, e.g. 30d or 12h.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what is kept of frozen layers, and remove what is no longer needed."""
    with errors_in_words():
        from pipeline.activations import FILE, Store, look
        from pipeline.sqlite_file import size_of

        size = None if keep is None else _bytes(keep, "--keep")
        moment = None if unused_for is None else datetime.now(UTC) - _age(unused_for)
        found = next((place for place in (folder, folder / "activations") if (place / FILE).is_file()), None)
        if found is None:
            raise CacheError(
                f"There is no activation store to look at: neither {folder} nor its folder activations holds an "
                f"{FILE}. Give the output_dir of a run, or its cache.dir. With cache: off a run keeps nothing."
            )
        path, removed = found / FILE, None
        if size is not None or moment is not None:
            # Nothing is added here, so nothing is removed to make room, whatever the store's own limit is.
            with Store(found, shutil.disk_usage(found).total, Console().warn) as store:
                removed = store.prune(size, moment)
        held = look(found) if path.exists() else []  # An emptied store has no file.
        on_disk = size_of(path)
        if as_json:
            print(
                json.dumps(
                    {
                        "file": str(path),
                        "bytes": on_disk,
                        "removed": removed and {"activations": removed.entries, "bytes": removed.bytes},
                        "held": [
                            {
                                "activations": part.entries,
                                "bytes": part.bytes,
                                "last_used": part.last_used.isoformat(timespec="seconds"),
                                "of": part.description,
                            }
                            for part in held
                        ],
                    }
                )
            )
            return
        if removed is not None:
            print(f"removed {removed.entries:,} activations, {filesize.decimal(removed.bytes)} given back")
        if held:
            _print_held(held)
        print(f"{path}: " + (f"{filesize.decimal(on_disk)} on disk" if held else "nothing is kept"))


@app.command()
def serve(
    export: Annotated[
        Path | None,
        typer.Argument(metavar="EXPORT", help="A folder of models: EXPORT/NAME/VERSION/. If not given, export."),
    ] = None,
    models_config: Annotated[
        Path | None,
        _serve_option("models-config", "TensorFlow Serving's models.config, in place of EXPORT.", metavar="FILE"),
    ] = None,
    engine: Annotated[
        str | None,
        _serve_option("engine", "openvino, tensorflow or tfserving; the last with --upstream, else the first."),
    ] = None,
    upstream: Annotated[
        str | None, _serve_option("upstream", "TensorFlow Serving's gRPC address.", metavar="HOST:PORT")
    ] = None,
    host: Annotated[str, _serve_option("host", "Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, _serve_option("port", "0: any free one.", min=0, max=65535)] = 8501,
    token_file: Annotated[
        Path | None,
        _serve_option("token-file", "Holds the token that clients must send; or GRAFT_TOKEN is it.", metavar="FILE"),
    ] = None,
    no_auth: Annotated[bool, _serve_option("no-auth", "Listen beyond loopback without a token.")] = False,
    max_body: Annotated[str, _serve_option("max-body", "Of a request.", metavar="SIZE")] = "10MB",
    max_images: Annotated[int, _serve_option("max-images", "In a request.", min=1)] = 64,
    max_megapixels: Annotated[float, _serve_option("max-megapixels", "Of one image, by its header.")] = 50,
    timeout: Annotated[float, _serve_option("timeout", "Seconds for a request, slow bodies included.")] = 30,
    max_queue: Annotated[int, _serve_option("max-queue", "Images that wait; then requests are refused.", min=1)] = 128,
    max_connections: Annotated[int, _serve_option("max-connections", "Open at once.", min=1)] = 2000,
    max_batch: Annotated[int, _serve_option("max-batch", "Images computed at once.", min=1)] = 32,
    max_wait_ms: Annotated[float, _serve_option("max-wait-ms", "An image waits for others being decoded.")] = 2,
    decode_threads: Annotated[
        int | None, _serve_option("decode-threads", "Images decoded at once. If not given, cores + 1.", min=1)
    ] = None,
    poll_seconds: Annotated[float, _serve_option("poll-seconds", "Between looks for new versions.")] = 1,
    samples: Annotated[
        Path | None,
        _serve_option("samples", "Log a sample of embeddings and answers there, for graft watch.", metavar="DIR"),
    ] = None,
    sample_rate: Annotated[float, _serve_option("sample-rate", "Share of the images in that log.")] = 0.1,
) -> None:
    """Answer image classification over HTTP, with every model below a folder.

    Each option can be set by an environment variable too: --max-queue by GRAFT_SERVE_MAX_QUEUE.
    """
    with errors_in_words():
        from pydantic import ValidationError

        from serving import models_config as models_config_file
        from serving.app import serve as serve_http
        from serving.settings import Settings, token
        from serving.versions import check_folder

        chosen: Any = engine or ("tfserving" if upstream else "openvino")  # pydantic checks it.
        optional: dict[str, Any] = {"export": export, "decode_threads": decode_threads}
        optional = {name: value for name, value in optional.items() if value is not None}
        try:
            settings = Settings(
                models_config=models_config, engine=chosen, upstream=upstream, host=host, port=port,
                token=token(token_file, os.environ), no_auth=no_auth,
                max_body_bytes=_bytes(max_body, "--max-body"), max_pictures=max_images, max_megapixels=max_megapixels,
                request_seconds=timeout, max_queue=max_queue, max_connections=max_connections, max_batch=max_batch,
                max_wait_ms=max_wait_ms, poll_seconds=poll_seconds,
                samples=samples, sample_rate=sample_rate, **optional,
            )  # fmt: skip
        except ValidationError as error:
            raise ConfigError("; ".join(_option_error(e) for e in error.errors())) from None
        if models_config is None:
            check_folder(settings.export)
        else:
            if export is not None:
                raise ConfigError(f"Give either a folder, here {export}, or --models-config, which names the folders.")
            models_config_file.read(models_config)  # Later mistakes leave what is served; the first are told.
        what = shown((models_config or settings.export).absolute())
        serve_http(settings, lambda url: print(f"{what} is served at {url} (stop with Ctrl-C)", flush=True))


@app.command()
def sync(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder, e.g. runs/NAME/TIME.")],
) -> None:
    """Deliver what a run recorded while MLflow was away."""
    with errors_in_words():
        from pipeline import tracking

        delivery = tracking.sync(run_dir, Console())
        print(f"MLflow run {delivery.run_id}: {delivery.records} entries delivered to {delivery.uri}.")


@app.command()
def ui(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of the runs to look at.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="Where the page is served on this machine.")] = 5000,
) -> None:
    """Open MLflow on the run store."""
    with errors_in_words():
        if find_spec("mlflow") is None:
            raise ModuleNotFoundError(name="mlflow")
        from pipeline.tracking import default_uri

        if not (output_dir / "mlflow.db").is_file():
            raise TrackingError(
                f"There are no runs to look at: {output_dir} holds no mlflow.db. Give the output_dir of a run. "
                "Runs whose tracking.uri, or MLFLOW_TRACKING_URI, names a server are on the server's own pages."
            )
        uri = default_uri(output_dir)
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
        print(f"MLflow shows {uri} at http://127.0.0.1:{port} (stop with Ctrl-C)", flush=True)
        os.execv(sys.executable, command)


def _print_summary(record: Any) -> None:
    from pipeline.tracking import default_uri

    report = shown(Path(record.run_dir) / "report.html")
    model = Path(record.export_dir or Path(record.run_dir) / "model")
    export_dir = shown(model)
    output_dir = Path(record.run_dir).parent.parent
    name = graft()
    figures = ", ".join(f"{name.removeprefix('test_')} {value:.4f}" for name, value in record.metrics.items())
    # `graft ui` shows the store in output_dir; any other, such as a server, is where its address says.
    own_store = record.tracking_uri == default_uri(output_dir)
    # A name whose versions are promoted has its gate, or graft promote, between a run and what is served.
    then = f"{name} models {record.name}"
    if record.export_dir is not None:
        then = f"{name} serve {shlex.quote(shown(model.parent.parent))}"
    for what, where, *commands in (
        ("test split", figures),
        ("report", report, f"python3 -m webbrowser {shlex.quote(report)}"),
        ("model", export_dir, f"{name} predict {shlex.quote(export_dir)} IMAGE...", then),
        ("MLflow", record.tracking_uri, *([f"{name} ui {shlex.quote(shown(output_dir))}"] if own_store else [])),
    ):
        print(f"{what:<12}{where}")
        for command in commands:
            print(f"{'':<12}  {command}")


def _print_blocks(name: str) -> None:
    from pipeline.backbones import BACKBONES, cuts, weights

    row = BACKBONES[name]
    network = weights.outline(name, row.default_size)
    blocks = cuts.blocks(network, row.block_end)
    print(f"{name}: {network.count_params():,} weights, {len(blocks)} blocks, bottom to top")
    table = Table("unfreeze", "cut below", "layers", "weights", "output", box=None, header_style="bold")
    for number, block in enumerate(blocks):
        layers = [network.get_layer(layer) for layer in block]
        table.add_row(
            f"{{blocks: {len(blocks) - number}}}",
            cuts.cut_below(network, [name for above in blocks[number:] for name in above]) or "(input)",
            str(len(layers)),
            f"{sum(layer.count_params() for layer in layers):,}",
            "x".join(str(size) for size in layers[-1].output.shape[1:]),
        )
    out().print(table)


def _print_held(held: "list[Held]") -> None:
    table = Table("frozen up to", box=None, header_style="bold")
    for name in ("count", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("shape", "dtype", "engine", "last used"):
        table.add_column(name, no_wrap=True)
    networks: dict[str, list[Held]] = {}
    for part in held:
        networks.setdefault(_network(part.description), []).append(part)
    for network, parts in networks.items():
        table.add_row(f"[dim]{escape(network)}[/dim]")
        for part in parts:
            of, size = part.description, filesize.decimal(part.bytes)
            shape = "x".join(map(str, of["shape"])) if isinstance(of.get("shape"), list) else "?"
            cut, dtype, engine = (escape(str(of.get(name, "?"))) for name in ("cut", "dtype", "engine"))
            engine = engine.split()[0]  # Without its version.
            table.add_row(cut, f"{part.entries:,}", size, shape, dtype, engine, _ago(part.last_used))
    count, total = sum(part.entries for part in held), sum(part.bytes for part in held)
    table.add_row("[dim]in all[/dim]", f"{count:,}", filesize.decimal(total))
    out().print(table)


def _network(description: dict[str, Any]) -> str:
    """A network's name and options; another version of Graft may have described it in other words."""
    options = description.get("options")
    shown = "".join(f" {key}={value}" for key, value in options.items()) if isinstance(options, dict) else " ?"
    return f"{description.get('backbone', '?')}{shown}"


def _ago(moment: datetime) -> str:
    hours = int((datetime.now(UTC) - moment) / timedelta(hours=1))
    if hours < 1:
        return "just now"
    return f"{hours} h ago" if hours < 48 else f"{hours // 24} d ago"


def _bytes(text: str, option: str) -> int:
    from pydantic import ByteSize, TypeAdapter

    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option} must be a size such as 2GB, 500MB or 0. Received: {text!r}.") from None


def _option_error(error: Any) -> str:
    """One of pydantic's errors on `graft serve`'s settings."""
    if error["type"] == "value_error":  # Of our own rules, which are whole sentences.
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    option = {"max_body_bytes": "max-body", "max_pictures": "max-images", "request_seconds": "timeout"}.get(name, name)
    return f"--{option.replace('_', '-')}: {error['msg']}. Received: {error['input']!r}"


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([dh])", text.strip())
    if match is None:
        raise ConfigError(f"--unused-for must be days or hours such as 30d or 12h. Received: {text!r}.")
    return int(match[1]) * (timedelta(days=1) if match[2] == "d" else timedelta(hours=1))


for command in lifecycle.COMMANDS:
    app.command()(command)


def main() -> None:
    """The `graft` command."""
    app()


if __name__ == "__main__":
    main()
