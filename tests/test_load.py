"""The load generator of the endpoint's benchmark against a server whose answers are known."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "benchmarks" / "load.c"
PIECE = 7  # bytes that the server writes at once where it writes slowly


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Runs the generator: arguments to what it prints."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: install gcc or clang")
    program = tmp_path_factory.mktemp("load") / "load"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)

    def run(*arguments):
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run.program = program
    return run


class Server:
    """Answers as the path says, and keeps what it saw: requests by path, bodies, statuses sent."""

    def __init__(self):
        self.bodies, self.heads, self.sent, self.connections = [], [], Counter(), 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24), self._loop
        )
        self._server = listening.result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self):
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self):
        await asyncio.sleep(0.05)  # A connection that is being accepted as the server closes is never closed itself.
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader, writer):
        self.connections += 1
        try:
            keep = True
            while keep:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                path = head.split()[1]
                if path != "/early":
                    length = next(line for line in head.splitlines() if line.startswith("Content-Length:"))
                    self.bodies.append(await reader.readexactly(int(length.split(":")[1])))
                keep = await self._answer(path, len(self.heads), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, path, number, writer):
        """Whether the connection is kept."""
        status, headers, body = 200, ["Content-Length: 5"], b"hello"
        if path == "/versions":
            headers += [f"x-model-version:  {number % 2 + 1} "] if number % 3 else []
        elif path == "/codes":
            status = (200, 404, 503)[number % 3]
        elif path == "/chunked":
            headers, body = ["Transfer-Encoding: chunked"], b"5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n"
        elif path == "/empty":
            status, headers, body = 204, [], b""
        elif path == "/closing":
            headers += ["Connection: Close"]
        elif path == "/until-closed":
            headers = []
        elif path == "/early":
            status = 429
        elif path == "/continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif path == "/hang":
            await asyncio.sleep(20)
        elif path == "/cut":
            headers = ["Content-Length: 50"]
        elif path == "/garbage":
            writer.write(b"220 mail.example ESMTP\r\n\r\n")
            return False
        answer = "\r\n".join([f"HTTP/1.1 {status} Whatever", *headers, "", ""]).encode() + body
        self.sent[str(status)] += 1
        if path in ("/pieces", "/chunked"):
            for start in range(0, len(answer), PIECE):
                writer.write(answer[start : start + PIECE])
                await writer.drain()
                await asyncio.sleep(0)
        else:
            writer.write(answer)
        return path not in ("/closing", "/until-closed", "/early", "/cut")


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def files(tmp_path):
    """Three bodies: of one byte, of a picture's size, and larger than what a socket holds."""
    bodies = [b"a", b"b" * 60_000, b"c" * 6_000_000]
    for name, body in zip("abc", bodies, strict=True):
        (tmp_path / name).write_bytes(body)
    return [tmp_path / name for name in "abc"]


def counts(result):
    return {status: figures["count"] for status, figures in result["status"].items()}


def failed(result):
    return {kind: count for kind, count in result["errors"].items() if count}


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("path", ["/ok", "/codes", "/versions", "/chunked", "/pieces", "/empty", "/continue"])
def test_a_kept_connection_carries_every_request(load, server, files, path, concurrency):
    result = load("--concurrency", concurrency, "--seconds", 0.2, server.url + path, *files)
    assert counts(result) == server.sent
    assert result["requests"] == sum(server.sent.values()) > 0
    assert failed(result) == {}
    successes = server.sent["200"] + server.sent["204"]
    assert sum(result["versions"].values()) + result["unversioned"] == successes
    assert server.connections == concurrency


@pytest.mark.parametrize("path", ["/closing", "/until-closed"])
def test_a_connection_that_the_server_ends_is_opened_again(load, server, files, path):
    result = load("--concurrency", 3, "--seconds", 0.2, server.url + path, *files)
    assert counts(result) == server.sent
    assert failed(result) == {}
    assert sum(server.sent.values()) <= server.connections <= sum(server.sent.values()) + 3


def test_an_answer_before_the_body_is_read_counts_as_the_answer_it_is(load, server, files):
    result = load("--concurrency", 2, "--seconds", 0.2, server.url + "/early", files[2])
    assert counts(result) == server.sent
    assert server.sent["429"] > 1
    assert failed(result) == {}


def test_bodies_and_headers_arrive_as_they_are_and_in_order(load, server, files):
    load("--seconds", 0.1, "--header", "Authorization: Bearer x", "--header", "A: b", server.url + "/ok", *files)
    expected = [path.read_bytes() for path in files]
    assert len(server.bodies) > 3
    assert all(body == expected[place % 3] for place, body in enumerate(server.bodies))
    assert {head.split("Content-Length")[0] for head in server.heads} == {
        f"POST /ok HTTP/1.1\r\nHost: {server.url.removeprefix('http://')}\r\nAuthorization: Bearer x\r\nA: b\r\n"
    }


def test_versions_are_counted_by_the_header_of_answers_that_succeeded(load, server, files):
    result = load("--seconds", 0.2, server.url + "/versions", files[0])
    count = result["requests"]
    assert result["unversioned"] == count // 3
    assert set(result["versions"]) == {"1", "2"}
    assert sum(result["versions"].values()) + result["unversioned"] == count


@pytest.mark.parametrize(
    ("path", "kind", "options"),
    [
        ("/garbage", "malformed", []),
        ("/cut", "closed", []),
        ("/hang", "timeout", ["--timeout", "0.1"]),
    ],
)
def test_what_is_no_answer_is_an_error_by_its_kind(load, server, files, path, kind, options):
    result = load("--concurrency", 2, "--seconds", 0.2, *options, server.url + path, files[0])
    assert counts(result) == {}
    assert failed(result) == {kind: result["requests"]}
    assert len(server.heads) == result["requests"] > 1


def test_a_server_that_is_not_there_refuses(load, files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # And does not listen.
        port = taken.getsockname()[1]
        result = load("--concurrency", 2, "--seconds", 0.1, f"http://127.0.0.1:{port}/", files[0])
    assert failed(result) == {"refused": result["requests"]}
    assert 2 <= result["requests"] < 100


def test_requests_come_by_the_schedule_and_not_by_the_answers(load, server, files):
    result = load("--rate", 100, "--connections", 4, "--seconds", 0.5, server.url + "/ok", files[0])
    assert result["requests"] + result["unsent"] == 50
    assert counts(result) == server.sent

    server.sent.clear()
    result = load(
        "--rate", 100, "--connections", 4, "--seconds", 0.5, "--timeout", 1, server.url + "/hang", files[0]
    )  # fmt: skip
    assert result["requests"] == 4
    assert result["unsent"] == 46
    assert failed(result) == {"timeout": 4}


def test_latency_counts_from_when_a_request_was_due(load, server, files):
    arguments = ["--rate", "100", "--connections", "64", "--seconds", "0.6", server.url + "/ok", files[0]]
    with subprocess.Popen([load.program, *arguments], stdout=subprocess.PIPE) as process:
        while not server.heads:
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)  # What is due meanwhile is sent late.
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        result = json.loads(process.communicate()[0])
    assert result["status"]["200"]["p90"] > 100


def test_warming_up_is_not_counted(load, server, files):
    result = load("--warmup", 0.2, "--seconds", 0.2, server.url + "/ok", files[0])
    assert 0 < result["requests"] < sum(server.sent.values())
    assert result["seconds"] == 0.2
    assert 0 < result["throughput"] <= result["requests"] / 0.2


@pytest.mark.parametrize("options", [[], ["--slow-headers"]])
def test_slow_connections_do_not_hinder_the_others(load, server, files, options):
    result = load("--seconds", 0.4, "--slow", 10, *options, server.url + "/ok", files[0])
    assert 2 <= result["slow"]["opened"] <= 10
    assert server.connections == result["slow"]["opened"] + 1
    slow_heads = 0 if options else result["slow"]["opened"]
    assert len(server.heads) == result["requests"] + slow_heads
    assert counts(result) == server.sent  # No slow request was ever whole.


def test_slow_connections_that_are_answered_are_counted_apart(load, server, files):
    result = load("--seconds", 0.4, "--slow", 10, server.url + "/early", files[0])
    assert set(result["slow"]["status"]) == {"429"}
    assert counts(result)["429"] + result["slow"]["status"]["429"] <= server.sent["429"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["http://127.0.0.1:1/"],
        ["https://127.0.0.1:1/", SOURCE],
        ["http://example.org/", SOURCE],
        ["http://127.0.0.1:70000/", SOURCE],
        ["http://127.0.0.1:1/", "no-such-file"],
        ["--rate", "10", "http://127.0.0.1:1/", SOURCE],
        ["--seconds", "soon", "http://127.0.0.1:1/", SOURCE],
        ["--concurrency", "1.5", "http://127.0.0.1:1/", SOURCE],
    ],
)
def test_a_wrong_command_line_is_one_line_on_standard_error(load, arguments):
    done = subprocess.run([load.program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("load: ")
    assert done.stdout == ""
