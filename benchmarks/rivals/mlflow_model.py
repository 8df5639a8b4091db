"""`mlflow models serve`, of a model from code (https://mlflow.org/docs/latest/ml/model/models-from-code/).

    python -m benchmarks.rivals.mlflow_model --export DIR --model NEW [--decode pillow|graph]
    mlflow models serve --model-uri NEW --env-manager local --port N

As its documentation and its example of an image classifier (examples/flower_classifier in its repository) have it:
preprocessing is part of a pyfunc, whose signature has a binary column, which comes in base64; one worker, the default.
It has no batching of requests.

Requests: {"dataframe_split": {"columns": ["image"], "data": [["…base64…"]]}} to /invocations; ready when /ping answers
200.
"""

import argparse
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.types import ColSpec, DataType, Schema


class ImageClassifier(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        from benchmarks.rivals.saved_model import SavedModel

        self.model = SavedModel(Path(context.artifacts["export"]), context.model_config["decode"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return self.model(list(model_input["image"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--decode", choices=["pillow", "graph"], default="pillow")
    options = parser.parse_args()
    mlflow.pyfunc.save_model(
        options.model,
        python_model=__file__,
        artifacts={"export": str(options.export)},
        model_config={"decode": options.decode},
        signature=ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")])),
        pip_requirements=["mlflow"],
    )


if __name__ == "__main__":
    main()
else:
    set_model(ImageClassifier())
