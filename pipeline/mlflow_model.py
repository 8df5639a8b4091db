"""The exported classifier as an MLflow model: MLflow copies this file beside the SavedModel and runs it on loading.

It stands alone, so that the model loads where this project is not installed, and nothing in it is ever unpickled.
"""

import mlflow
import pandas  # type: ignore[import-untyped]


class Classifier(mlflow.pyfunc.PythonModel):
    """Encoded pictures in, labels out."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        import tensorflow as tf

        # The signature alone does not keep the SavedModel's variables alive.
        self._model = tf.saved_model.load(context.artifacts["saved_model"])
        self._classify = self._model.signatures["serving_default"]

    def predict(self, model_input: pandas.DataFrame, params: dict[str, str] | None = None) -> pandas.DataFrame:
        """Labels pictures.

        Args:
            model_input: N rows; column image: an encoded picture (JPEG, PNG, ...), bytes.
            params: none are known.

        Returns:
            N rows; columns label: str; score: float, the label's probability; probabilities: list of C floats.
        """
        import tensorflow as tf

        result = self._classify(image_bytes=tf.constant(model_input["image"].tolist(), tf.string))
        return pandas.DataFrame(
            {
                "label": [label.decode() for label in result["label"].numpy()],
                "score": result["score"].numpy().tolist(),
                "probabilities": result["probabilities"].numpy().tolist(),
            }
        )


mlflow.models.set_model(Classifier())
