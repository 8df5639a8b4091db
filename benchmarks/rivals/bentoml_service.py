"""BentoML's service with adaptive batching (https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html).

    EXPORT=DIR [DECODE=pillow|graph] bentoml serve benchmarks.rivals.bentoml_service:ImageClassifier --port N

As its documentation has it: a batchable API that takes a list, of one picture from each request, on an exported
SavedModel; `max_batch_size` and `max_latency_ms` of the documentation's example; one worker, the default. Pictures come
as BentoML's own type for them, `PIL.Image.Image`, or as files where TensorFlow decodes.

Requests: multipart/form-data with one file "images", to /classify; ready when /readyz answers 200.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
from PIL.Image import Image

from benchmarks.rivals.saved_model import SavedModel

DECODE = os.environ.get("DECODE", "pillow")
Picture = Image if DECODE == "pillow" else Path


@bentoml.service(traffic={"timeout": 60})
class ImageClassifier:
    def __init__(self) -> None:
        self.model = SavedModel(Path(os.environ["EXPORT"]), DECODE)

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def classify(self, images: list[Picture]) -> list[dict[str, Any]]:
        return self.model(images if DECODE == "pillow" else [path.read_bytes() for path in images])
