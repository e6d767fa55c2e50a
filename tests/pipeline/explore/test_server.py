"""Who may ask: this machine, with the token, by its own name. What is answered: JSON, pictures, and the page."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest

from infra.errors import UsageError
from pipeline.explore import explore
from pipeline.explore.server import Server
from tests.servers.commands import start

COUNT = json.dumps({"rules": []})
ROWS = json.dumps({"rules": [], "view": {"side": "kept"}})
PATHS = [("GET", "/", None), ("GET", "/app.js", None), ("GET", "/overview", None), ("GET", "/image/0", None),
         ("POST", "/count", COUNT), ("POST", "/effects", COUNT), ("POST", "/rows", ROWS)]  # fmt: skip


def ask(
    server: Server, method: str, path: str, body: Any = None, host: str | None = None, token: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, and body. token: put into the header for it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    sent = {"Host": host or f"127.0.0.1:{server.port}", "X-Token": token, **headers}
    if body is not None:
        sent = {"Content-Type": "application/json"} | sent
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


@pytest.mark.parametrize(("method", "path", "body"), PATHS)
def test_the_token_opens_every_path_and_nothing_else_does(server, method, path, body):
    assert ask(server, method, path, body, token=server.token)[0] == 200
    for token in ("", "x", server.token[:-1], server.token + "x", server.token.swapcase(), "ünï"):
        status, _, answer = ask(server, method, path, body, token=token.encode().decode("latin-1"))
        assert (status, list(json.loads(answer))) == (403, ["error"])
    assert ask(server, method, path, body, Cookie=f"explore_{server.port}=x; token={server.token}")[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:{port}", "127.0.0.1:1", "127.0.0.1", "localhost.evil.test:{port}", ""]
)
def test_a_foreign_host_is_refused_even_with_the_token(server, host):
    named = host.format(port=server.port) or " "
    assert ask(server, "GET", "/overview", token=server.token, host=named)[0] in (400, 403)
    assert ask(server, "GET", "/overview", token=server.token, host=f"localhost:{server.port}")[0] == 200


def test_the_printed_address_hands_out_a_cookie_that_scripts_and_strangers_do_not_get(server):
    address = urlsplit(server.url)
    assert (address.scheme, address.hostname, address.port, address.path) == ("http", "127.0.0.1", server.port, "/")
    status, headers, page = ask(server, "GET", f"/?{address.query}")
    assert status == 200
    assert server.token.encode() not in page
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask(server, "GET", "/overview", Cookie=cookie.partition(";")[0])[0] == 200


def test_two_explorers_have_two_tokens(scored, serve):
    one, other = serve(scored), serve(scored)
    assert one.token != other.token
    assert len(one.token) >= 32
    assert ask(one, "GET", "/overview", token=other.token)[0] == 403


def test_it_listens_on_loopback_alone(server):
    with socket.socket() as free:  # the port is taken on 127.0.0.1, and free on every other address of this machine
        with pytest.raises(OSError):
            free.bind(("127.0.0.1", server.port))
        free.bind(("127.0.0.2", server.port))
    addresses = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1"}:
        with pytest.raises(OSError):
            socket.create_connection((address, server.port), timeout=2)


@pytest.mark.parametrize(
    ("method", "path", "body"), [*PATHS, ("GET", "/nothing", None), ("GET", "/image/999999", None)]
)
def test_every_answer_forbids_foreign_content_framing_and_guessing(server, method, path, body):
    for token in (server.token, "x"):
        _, headers, _ = ask(server, method, path, body, token=token, Origin="http://evil.test")
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/count", "{"),
        ("/count", "[]"),
        ("/count", '{"rules": [], "sql": "SELECT 1"}'),
        ("/count", '{"rules": [{"kind": "range", "column": 99, "low": 1}]}'),
        ("/count", '{"rules": [{"kind": "range", "column": "c0; DROP TABLE rows", "low": 1}]}'),
        ("/count", '{"rules": [{"kind": "range", "column": 0, "low": "0) OR (1"}]}'),
        ("/count", '{"rules": [{"kind": "range", "column": 0, "low": NaN}]}'),
        ("/count", '{"rules": [{"kind": "range", "column": 0, "low": 1e300}]}'),
        ("/count", '{"rules": [{"kind": "values", "column": 3, "values": ["en"]}]}'),
        ("/count", '{"rules": [{"kind": "top", "column": 0, "fraction": 0, "of": "all"}]}'),
        ("/count", '{"rules": [' + ",".join(['{"kind": "range", "column": 0}'] * 25) + "]}"),
        ("/effects", '{"rules": 1}'),
        ("/rows", '{"rules": []}'),
        ("/rows", '{"rules": [], "view": {"side": "kept", "seed": "1; DROP TABLE rows"}}'),
        ("/rows", '{"rules": [], "view": {"side": "kept", "page": -1}}'),
    ],
)
def test_a_question_that_is_not_of_the_page_s_kind_is_refused_and_harms_nothing(server, path, body):
    status, _, answer = ask(server, "POST", path, body, token=server.token)
    assert status == 400
    assert json.loads(answer)["error"]
    status, _, answer = ask(server, "POST", "/count", COUNT, token=server.token)
    assert json.loads(answer)["total"] == 120


def test_forms_of_other_pages_and_endless_bodies_are_refused(server):
    form = {"Content-Type": "text/plain"}
    assert ask(server, "POST", "/count", COUNT, token=server.token, **form)[0] == 400
    assert ask(server, "POST", "/count", b"[" * 200_000, token=server.token)[0] == 413
    assert ask(server, "PUT", "/count", COUNT, token=server.token)[0] == 405


@pytest.mark.parametrize(
    "path", ["/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "/page/app.js", "/app.js%00", "/etc/passwd"]
)
def test_only_the_page_s_own_files_are_served(server, path):
    assert ask(server, "GET", path, token=server.token)[0] == 404


def test_counts_pages_and_pictures_arrive(server):
    overview = json.loads(ask(server, "GET", "/overview", token=server.token)[2])
    assert overview["num_rows"] == 120
    assert all(sum(column["bins"]) + column["missing"] == 120 for column in overview["columns"])
    words = [column["path"] for column in overview["columns"]].index("words")
    rules = [{"kind": "range", "column": words, "low": 4, "high": None}]
    counts = json.loads(ask(server, "POST", "/count", json.dumps({"rules": rules}), token=server.token)[2])
    assert 0 < counts["kept"] < 120
    look = json.dumps({"rules": rules, "view": {"side": "kept", "near": 0}})
    (first, *_) = json.loads(ask(server, "POST", "/rows", look, token=server.token)[2])["items"]
    assert first["values"][words] == 4
    status, headers, picture = ask(server, "GET", f"/image/{first['row']}", token=server.token)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert picture.startswith(b"\x89PNG")


def test_many_questions_at_once_get_the_answers_of_one_at_a_time(server):
    questions = [json.dumps({"rules": [{"kind": "range", "column": 4, "low": low}]}) for low in range(1, 9)]
    alone = [ask(server, "POST", "/count", body, token=server.token)[2] for body in questions]
    together: dict[int, bytes] = {}

    def one(at: int) -> None:
        together[at] = ask(server, "POST", ("/count", "/effects")[at % 2], questions[at // 2], token=server.token)[2]

    threads = [threading.Thread(target=one, args=(at,)) for at in range(2 * len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[2 * at] for at in range(len(questions))] == alone
    assert b"error" not in b"".join(together.values())


def test_a_taken_port_is_said_before_anything_is_served(scored):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="another --port"):
            explore(scored.storage.url, taken.getsockname()[1], on_ready=lambda url: pytest.fail(url))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_its_address_serves_until_it_is_told_to_stop_and_ends_well(scored, number):
    process = start("pipeline", "explore", scored.storage.url, "--port", "0", "--json")
    assert process.stdout is not None
    address = urlsplit(json.loads(process.stdout.readline())["url"])
    connection = http.client.HTTPConnection(address.netloc, timeout=20)
    connection.request("GET", f"/overview?{address.query}")
    assert connection.getresponse().status == 200
    process.send_signal(number)
    assert process.wait(20) == 0
    with pytest.raises(OSError):
        socket.create_connection((address.hostname, address.port), timeout=2)
