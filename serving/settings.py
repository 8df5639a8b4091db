"""What `graft serve` is told: one field each, checked before anything is opened."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Settings(BaseModel):
    """Where the models are, how they are computed, and what is refused.

    `export` or `models_config` names the models; `upstream` goes with the engine "tfserving".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    export: Path = Field(Path("export"), description="folder whose subfolders are models: NAME/VERSION/")
    models_config: Path | None = Field(None, description="TensorFlow Serving's models.config, in place of `export`")
    engine: Literal["openvino", "tensorflow", "tfserving"] = Field("openvino", description="what computes")
    upstream: str | None = Field(None, description="HOST:PORT of TensorFlow Serving's gRPC, for engine tfserving")

    host: str = Field("127.0.0.1", description="address to bind to")
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
    decode_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, gt=0, description="pictures decoded at once")
    poll_seconds: Annotated[float, Field(gt=0)] = Field(1, description="between looks for new versions")
