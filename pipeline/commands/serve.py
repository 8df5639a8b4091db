"""`graft serve`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import byte_size, errors_in_words, shown
from pipeline.errors import ConfigError


def _serve_option(name: str, text: str, **settings: Any) -> Any:
    """An option of `graft serve`, which containers set by environment variables."""
    variable = f"GRAFT_SERVE_{name.replace('-', '_').upper()}"
    return typer.Option(f"--{name}", help=text, envvar=variable, show_envvar=False, **settings)


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
                max_body_bytes=byte_size(max_body, "--max-body"), max_pictures=max_images,
                max_megapixels=max_megapixels, request_seconds=timeout, max_queue=max_queue,
                max_connections=max_connections, max_batch=max_batch,
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


def _option_error(error: Any) -> str:
    """One of pydantic's errors on `graft serve`'s settings."""
    if error["type"] == "value_error":  # Of our own rules, which are whole sentences.
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    option = {"max_body_bytes": "max-body", "max_pictures": "max-images", "request_seconds": "timeout"}.get(name, name)
    return f"--{option.replace('_', '-')}: {error['msg']}. Received: {error['input']!r}"
