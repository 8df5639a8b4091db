"""The smoke test, against servers that answer as they are told, and against a real `graft serve`."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pipeline import publish
from pipeline.config import SmokeTest
from pipeline.errors import ConfigError
from pipeline.judge import Known
from pipeline.smoke import SmokeTestError, read_token, smoke_test
from tests import serving

PICTURES = [
    Known(picture="b25l", probabilities={"ant": 0.9, "bee": 0.1}),
    Known(picture="dHdv", probabilities={"ant": 0.2, "bee": 0.8}),
]
RIGHT = {"predictions": [{"probabilities": [0.9, 0.1]}, {"probabilities": [0.2, 0.8]}]}


def available(*versions):
    """What TensorFlow Serving says of its versions."""
    return {"model_version_status": [{"version": str(version), "state": "AVAILABLE"} for version in versions]}


@contextmanager
def endpoint(states, answer):
    """A server at an address; gives it, and a list that gets (method, path, headers, body) of each request.

    Args:
        states: what each GET gets in turn, the last one ever after: bytes as they are, else JSON; a number is an error.
        answer: what a POST gets, likewise.
    """
    left, asked = list(states), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(left.pop(0) if len(left) > 1 else left[0])

        def do_POST(self):
            self.reply(answer)

        def reply(self, given):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.command, self.path, dict(self.headers), body))
            if isinstance(given, bytes):
                self.wfile.write(given)
                self.close_connection = True
                return
            status, given = (given, {"error": "no such luck"}) if isinstance(given, int) else (200, given)
            content = json.dumps(given).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(url, version=3, **given):
    rules = SmokeTest(url=url, **{"timeout_seconds": 30, **given})
    smoke_test(rules, read_token(rules), "ants", version, PICTURES)


def refusal(states, answer=RIGHT, **rules):
    with endpoint(states, answer) as (url, _), pytest.raises(SmokeTestError) as error:
        ask(url, **rules)
    return error.value


def test_right_answers_pass():
    with endpoint([available(3, 2)], RIGHT) as (url, asked):
        ask(url)
    (_, status, headers, _), (_, predict, _, body) = asked
    assert (status, predict) == ("/v1/models/ants", "/v1/models/ants/versions/3:predict")
    assert json.loads(body) == {"instances": [{"b64": "b25l"}, {"b64": "dHdv"}]}
    assert "Authorization" not in headers


def test_a_server_decodes_a_little_otherwise():
    near = {"predictions": [{"probabilities": [0.87, 0.13]}, {"probabilities": [0.24, 0.76]}]}
    with endpoint([available(3)], near) as (url, _):
        ask(url)


def test_the_token_is_sent(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    with endpoint([available(3)], RIGHT) as (url, asked):
        ask(url, token_file=str(tmp_path / "token"))
    assert [headers["Authorization"] for _, _, headers, _ in asked] == ["Bearer secret"] * 2
    with pytest.raises(ConfigError, match=r"token_file .*nowhere cannot be read"):
        ask(url, token_file=str(tmp_path / "nowhere"))


def test_a_slow_start_is_waited_for():
    loading = {"model_version_status": [{"version": "3", "state": "LOADING"}, *available(2)["model_version_status"]]}
    with endpoint([503, b"nonsense", available(2), loading, {}, [], available(3)], RIGHT) as (url, asked):
        ask(url)
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (available(2), r"it says {'2': 'AVAILABLE'}"),
        (available(3, 4), r"it says {'3': 'AVAILABLE', '4': 'AVAILABLE'}"),
        (401, "401 .*no such luck"),
        (b"\0\0\x06\x04\0\0\0\0\0\0\5\0\0@\0", "."),  # As a gRPC port answers.
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", "."),
        ({"model_version_status": [7]}, "."),
        ("words", "."),
    ],
    ids=["old version only", "a higher version", "no token", "no HTTP", "cut off", "no versions", "no object"],
)
def test_an_endpoint_that_does_not_have_the_version_in_time(states, said):
    error = refusal([states], timeout_seconds=0.2)
    assert not error.answered, "another attempt may do better"
    assert str(error).startswith("http://127.0.0.1:")
    with pytest.raises(SmokeTestError, match=f"does not serve version 3 of ants after 0.2 s: {said}"):
        raise error


def test_no_server():
    with pytest.raises(SmokeTestError, match=r"after 0\.2 s: .*refused") as error:
        ask("http://127.0.0.1:9", timeout_seconds=0.2)
    assert not error.value.answered


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([[0.9, 0.1], [0.8, 0.2]], "answers otherwise .* for test picture 2 a probability differs by 0.6"),
        ([[0.9, 0.1], [0.2, float("nan")]], "answers otherwise .* for test picture 2 a probability differs by nan"),
        ([[float("nan"), 0.1], [0.2, 0.8]], "answers otherwise .* for test picture 1 a probability differs by nan"),
        ([[0.9, 0.1]], "answers for version 3 of ants in another form"),
        ([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], "in another form"),
        ([["0.9", "0.1"], ["0.2", "0.8"]], "in another form"),
    ],
    ids=["wrong", "not a number", "not a number first", "too few", "other classes", "words"],
)
def test_an_endpoint_that_answers_otherwise(answer, said):
    error = refusal([available(3)], {"predictions": [{"probabilities": row} for row in answer]})
    assert error.answered
    with pytest.raises(SmokeTestError, match=said):
        raise error


@pytest.mark.parametrize("answer", [503, {"error": "none"}, b"\0\0\0", [], b""])
def test_an_endpoint_that_is_busy_or_broken_may_do_better(answer):
    error = refusal([available(3)], answer, timeout_seconds=0.2)
    assert not error.answered


@pytest.mark.slow
def test_a_real_endpoint_before_and_after_a_new_version(tmp_path):
    import tensorflow as tf

    from tests.exporting import encoded

    home, run_dir = tmp_path / "export" / "m", tmp_path / "run"
    run_dir.mkdir()
    (tmp_path / "export").mkdir()
    serving.tiny(tmp_path / "export", seed=1)
    (home / "1").rename(run_dir / "model")
    serving.tiny(tmp_path / "export", seed=2)
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    answers = tf.saved_model.load(str(run_dir / "model")).signatures["pixels"](pixels=noise)["probabilities"].numpy()
    pictures = [
        Known(
            picture=base64.b64encode(encoded(pixels)).decode(),
            probabilities=dict(zip(serving.CLASSES, row.tolist(), strict=True)),
        )
        for pixels, row in zip(noise, answers, strict=True)
    ]

    with serving.serving(tmp_path / "export", environment={"GRAFT_TOKEN": "secret-token"}) as server:
        server.ready()
        url = server.url.rstrip("/")
        with pytest.raises(SmokeTestError, match="401"):
            smoke_test(SmokeTest(url=url, timeout_seconds=1), None, "m", 1, pictures)
        rules = SmokeTest(url=url, timeout_seconds=1)
        with pytest.raises(SmokeTestError, match="does not serve version 2 of m after 1 s"):
            smoke_test(rules, "secret-token", "m", 2, pictures)
        with pytest.raises(SmokeTestError, match="answers otherwise than version 1"):
            smoke_test(rules, "secret-token", "m", 1, pictures)
        publish.publish(run_dir / "model", home)
        smoke_test(rules.model_copy(update={"timeout_seconds": 30}), "secret-token", "m", 2, pictures)
