"""After a promotion: does the endpoint answer with the new version, and as the model did here? No TensorFlow.

The requests are TensorFlow Serving's REST API, which `graft serve` speaks too.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import SmokeTest
from pipeline.errors import ConfigError, GraftError
from pipeline.judge import Known

TOLERANCE = 0.05
"""Largest difference of a probability. Servers decode pictures in their own ways; another model is further off."""
_PAUSE_S = 0.5
_REQUEST_S = 30.0


class SmokeTestError(GraftError):
    """The endpoint does not answer, or not as it should.

    Attributes:
        answered: whether it answered with the version asked for.
    """

    def __init__(self, text: str, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


def smoke_test(rules: SmokeTest, token: str | None, name: str, version: int, known: Sequence[Known]) -> None:
    """Asks the endpoint until it answers for a name with a version, and compares its answers.

    Errors may pass, as of a server that is busy or one of several that has not seen the version yet; wrong answers do
    not.

    Args:
        rules: where the endpoint is, and how long it may take.
        token: what it asks for, from `read_token`.
        name: of the model.
        version: of its folder.
        known: pictures, and the answers that the model gave.

    Raises:
        SmokeTestError: it does not answer in time, or answers otherwise.
    """
    deadline = time.monotonic() + rules.timeout_seconds
    base = f"{rules.url}/v1/models/{name}"
    instances = [{"b64": picture.picture} for picture in known]
    while True:
        try:
            states = {row["version"]: row["state"] for row in _ask(base, None, token)["model_version_status"]}
            state = f"it says {states}"
            available = [int(number) for number, what in states.items() if what == "AVAILABLE"]
            if version in available and max(available) == version:
                answers = _ask(f"{base}/versions/{version}:predict", {"instances": instances}, token)["predictions"]
                break
        except (OSError, ValueError, KeyError, TypeError) as error:
            state = str(error) or type(error).__name__
        if time.monotonic() > deadline:
            raise SmokeTestError(
                f"{rules.url} does not serve version {version} of {name} after {rules.timeout_seconds:g} s: {state}.",
                answered=False,
            )
        time.sleep(_PAUSE_S)
    try:
        differences = [
            [abs(p - q) for p, q in zip(answer["probabilities"], picture.probabilities.values(), strict=True)]
            for answer, picture in zip(answers, known, strict=True)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise SmokeTestError(
            f"{rules.url} answers for version {version} of {name} in another form than it should ({error}).", True
        ) from error
    for number, these in enumerate(differences, start=1):
        beyond = [difference for difference in these if not difference <= TOLERANCE]  # NaN, too.
        if beyond:
            raise SmokeTestError(
                f"{rules.url} answers otherwise than version {version} of {name} did when it was judged: for test "
                f"picture {number} a probability differs by {max(beyond):.2g}, where {TOLERANCE:g} is allowed.",
                answered=True,
            )


def read_token(rules: SmokeTest) -> str | None:
    """What `token_file` holds. Raises ConfigError where it cannot be read."""
    if rules.token_file is None:
        return None
    try:
        return Path(rules.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"retrain.smoke_test.token_file {rules.token_file} cannot be read ({error}). Give a file that holds the "
            "endpoint's token."
        ) from None


def _ask(url: str, body: Any, token: str | None) -> Any:
    """The JSON that a GET, or a POST of a body, gives. Raises OSError or ValueError, with the server's own words."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=_REQUEST_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise OSError(f"{error.code} {error.read(300).decode(errors='replace')}") from None
    except http.client.HTTPException as error:
        raise OSError(f"that is no HTTP ({type(error).__name__})") from error
