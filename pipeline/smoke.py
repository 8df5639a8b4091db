"""After a promotion: does the endpoint answer with the new version, and as the model did here? No TensorFlow.

The requests are TensorFlow Serving's REST API, which `graft serve` speaks too.
"""

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import SmokeTest
from pipeline.errors import ConfigError, GraftError

TOLERANCE = 0.05
"""Largest difference of a probability. Servers decode pictures in their own ways; another model is further off."""
_PAUSE_S = 0.5


class SmokeTestError(GraftError):
    """The endpoint does not answer, or not as it should.

    Attributes:
        answered: whether it answered with the version asked for.
    """

    def __init__(self, text: str, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


class _RefusedError(OSError):
    """The endpoint answers, with an error."""


def smoke_test(
    rules: SmokeTest, name: str, version: int, pictures: Sequence[tuple[bytes, Mapping[str, float]]]
) -> None:
    """Waits until the endpoint answers for a name with a version, and compares its answers.

    Args:
        rules: where the endpoint is, and how long it may take.
        name: of the model.
        version: of its folder.
        pictures: encoded pictures, and the probability of each class that the model gave each of them.

    Raises:
        SmokeTestError: it does not answer in time, answers with another version, or answers otherwise.
        ConfigError: the token's file cannot be read.
    """
    token = _token(rules.token_file)
    deadline = time.monotonic() + rules.timeout_seconds
    base = f"{rules.url}/v1/models/{name}"
    state = "it did not answer"
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise SmokeTestError(
                f"{rules.url} does not serve version {version} of {name} after {rules.timeout_seconds:g} s: {state}.",
                answered=False,
            )
        try:
            states = {row["version"]: row["state"] for row in _ask(base, None, token, left)["model_version_status"]}
            state = f"it says {states}"
            available = [int(number) for number, what in states.items() if what == "AVAILABLE"]
            if version in available and max(available) == version:
                break
        except (OSError, ValueError, KeyError, TypeError) as error:
            state = str(error) or type(error).__name__
        time.sleep(_PAUSE_S)

    instances = [{"b64": base64.b64encode(data).decode()} for data, _ in pictures]
    try:
        answers = _ask(f"{base}:predict", {"instances": instances}, token, rules.timeout_seconds)["predictions"]
        differences = [
            [abs(p - q) for p, q in zip(answer["probabilities"], expected.values(), strict=True)]
            for answer, (_, expected) in zip(answers, pictures, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
        # A connection that was lost says nothing of the model.
        answered = isinstance(error, _RefusedError) or not isinstance(error, OSError)
        raise SmokeTestError(
            f"{rules.url} cannot classify with version {version} of {name}: {reason}.", answered
        ) from error
    for number, these in enumerate(differences, start=1):
        beyond = [difference for difference in these if not difference <= TOLERANCE]  # NaN, too.
        if beyond:
            raise SmokeTestError(
                f"{rules.url} answers otherwise than version {version} of {name} did when it was judged: for test "
                f"picture {number} a probability differs by {max(beyond):.2g}, where {TOLERANCE:g} is allowed.",
                answered=True,
            )


def _ask(url: str, body: Any, token: str | None, seconds: float) -> Any:
    """The JSON that a GET, or a POST of a body, gives. Raises OSError or ValueError, with the server's own words."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=max(seconds, 0.1)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise _RefusedError(f"{error.code} {error.read(300).decode(errors='replace')}") from None
    except http.client.HTTPException as error:
        raise OSError(f"that is no HTTP ({type(error).__name__})") from error


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"retrain.smoke_test.token_file {path} cannot be read ({error}).") from None
