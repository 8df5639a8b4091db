"""What `graft serve` is told: one field each, checked before anything is opened."""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from pipeline.errors import ConfigError

_ADDRESS = re.compile(r"\[?[^\s/]+\]?:\d{1,5}")


def _decoders() -> int:
    """One more than the cores this process may run on: at any moment, one of them waits for Python. A container's share
    of the cores cannot be seen from inside."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


class Settings(BaseModel):
    """Where the models are, how they are computed, and what is refused.

    `export` or `models_config` names the models; `upstream` goes with the engine "tfserving".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    export: Path = Field(Path("export"), description="folder whose subfolders are models: NAME/VERSION/")
    models_config: Path | None = Field(None, description="TensorFlow Serving's models.config, in place of `export`")
    engine: Literal["openvino", "tensorflow", "tfserving"] = Field("openvino", description="what computes")
    upstream: str | None = Field(None, description="HOST:PORT of TensorFlow Serving's gRPC, for engine tfserving")

    host: str = Field("127.0.0.1", description="address to bind to")
    no_auth: bool = Field(False, description="listen beyond loopback without a token")
    port: int = Field(8501, ge=0, le=65535, description="0: any free one")
    token: SecretStr | None = Field(None, description="what clients must send as Authorization: Bearer")

    max_body_bytes: int = Field(10_000_000, gt=0, description="of a request, after decompression as well")
    max_pictures: int = Field(64, gt=0, description="in one request")
    max_megapixels: float = Field(50, gt=0, description="of one picture, read from its header")
    request_seconds: float = Field(30, gt=0, description="for a whole request, a slow body included")
    max_queue: int = Field(128, gt=0, description="pictures that wait for their turn before requests are refused")
    max_connections: int = Field(2000, gt=0, description="open at once; more are answered 503")

    max_batch: int = Field(32, gt=0, description="pictures computed at once")
    max_wait_ms: float = Field(2, ge=0, description="that a picture waits for others that are being decoded")
    decode_threads: int = Field(default_factory=_decoders, gt=0, description="pictures decoded at once")
    poll_seconds: Annotated[float, Field(gt=0)] = Field(1, description="between looks for new versions")

    samples: Path | None = Field(None, description="folder for the log of samples that graft watch reads")
    sample_rate: float = Field(0.1, gt=0, le=1, description="share of the pictures that are kept there")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.engine == "tfserving") != (self.upstream is not None):
            raise ValueError(
                "The engine tfserving goes with --upstream HOST:PORT, the gRPC address of TensorFlow Serving, and no "
                f"other engine does. Received: --engine {self.engine}, --upstream {self.upstream}."
            )
        if self.upstream is not None and not _ADDRESS.fullmatch(self.upstream):
            raise ValueError(f"--upstream must be HOST:PORT, such as tfserving:8500. Received: {self.upstream!r}.")
        if self.token is None and not self.no_auth and not _is_loopback(self.host):
            raise ValueError(
                f"On {self.host} others can reach the server, so it needs a token: put one into a file and give "
                "--token-file FILE, or set GRAFT_TOKEN. Where something in front checks who asks, give --no-auth."
            )
        return self


def token(file: Path | None, environment: Mapping[str, str]) -> SecretStr | None:
    """The token in a file, or else in GRAFT_TOKEN; None where there is neither.

    Raises:
        ConfigError: the file cannot be read, or the token is empty or cannot be sent in a header.
    """
    if file is None and "GRAFT_TOKEN" not in environment:
        return None
    where = "GRAFT_TOKEN" if file is None else str(file)
    try:
        text = (environment["GRAFT_TOKEN"] if file is None else file.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The token in {where} cannot be read: {error}.") from None
    if not re.fullmatch(r"[!-~]{8,}", text):
        raise ConfigError(
            f"The token in {where} cannot be used: it must be at least 8 characters of printable ASCII without spaces. "
            "Make one with: openssl rand -hex 32"
        )
    return SecretStr(text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
