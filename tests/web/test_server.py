"""What the server lets in: its own files, names and pages, and nothing of any size."""

import socket

import pytest

from utils import UserError

JSON = {"content-type": "application/json"}


def test_the_page_has_its_files_and_a_strict_policy(page):
    answer = page.http.get("/")
    assert answer.status_code == 200 and "<title>LMConv" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for name in ("main.js", "style.css", "icon.svg"):
        found = page.http.get(f"/{name}")
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
    assert page.http.get("/api/models").json() == ["run/tiny"]


@pytest.mark.parametrize(
    "path", ["/../server.py", "/%2e%2e/server.py", "/static/main.js", "/etc/passwd", "/api/none"]
)
def test_no_other_path_is_known(page, path):
    assert page.http.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "", "127.0.0.1.nip.io"])
def test_other_names_are_refused(page, host):
    for answer in (
        page.http.get("/", headers={"host": host}),
        page.http.post("/api/describe", json={"model": 0}, headers={"host": host}),
    ):
        assert answer.status_code == 403 and "use its address" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "192.168.0.2:80"])
def test_addresses_are_not(page, host):
    assert page.http.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:80"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_cannot_ask_for_anything(page, headers):
    answer = page.http.post("/api/describe", json={"model": 0}, headers=headers)
    assert answer.status_code == 403
    own = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert page.http.post("/api/describe", json={"model": 0}, headers=own).status_code == 200


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"{", b"\xff", b"[" * 99_999])
def test_what_is_no_object_is_refused(page, content):
    answer = page.http.post("/api/sample", content=content, headers=JSON)
    assert answer.status_code == 400
    assert answer.json() == {"error": "The request is not a JSON object."}


def test_requests_are_bounded(page):
    answer = page.http.post("/api/describe", content=b" " * (2**24 + 1), headers=JSON)
    assert answer.status_code == 400 and "16 MB" in answer.json()["error"]


def test_a_port_in_use_is_an_error_in_a_line():
    pytest.importorskip("uvicorn", reason="the page is an extra")
    from lmconv.web.server import WebConfig, open_socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"`port` {port} cannot be used"):
            open_socket(WebConfig(port=port))
    with pytest.raises(UserError, match="`host`"):
        open_socket(WebConfig(host="192.0.2.1"))
