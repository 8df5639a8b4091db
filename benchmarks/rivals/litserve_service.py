"""LitServe's service for pictures (https://lightning.ai/docs/litserve/features/batching), on an exported SavedModel.

    python -m benchmarks.rivals.litserve_service --export DIR --port N [--decode pillow|graph]

As its documentation and its own image classifier have it: the picture in base64 in a JSON document, `decode_request`
takes it out, `batch` decodes on a pool with a thread per core, `predict` computes the batch, `max_batch_size` and
`batch_timeout` form it. Batches are of 16, and wait 10 ms, as in that example; one worker, the default.

Requests: {"image_data": "…base64…"} to /predict; ready when /health answers 200.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import litserve as ls


class ImageClassifier(ls.LitAPI):
    def __init__(self, export: Path, decode: str, **options: Any) -> None:
        super().__init__(**options)
        self._export, self._decode = export, decode

    def setup(self, device: str) -> None:
        from benchmarks.rivals.saved_model import SavedModel

        self.model = SavedModel(self._export, self._decode)

    def decode_request(self, request: dict[str, str]) -> str:
        return request["image_data"]

    def batch(self, inputs: list[str]) -> list[bytes]:
        return [base64.b64decode(data) for data in inputs]

    def predict(self, batch: list[bytes]) -> list[dict[str, Any]]:
        return self.model(batch)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--decode", choices=["pillow", "graph"], default="pillow")
    options = parser.parse_args()
    api = ImageClassifier(options.export, options.decode, max_batch_size=16, batch_timeout=0.01)
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False)


if __name__ == "__main__":
    main()
