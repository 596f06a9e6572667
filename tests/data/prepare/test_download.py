"""Downloads from a server on this machine: resumed, refused, and interrupted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import refuses, says
from tests.data.conftest import Prepare, set_up
from tests.data.prepare import archives
from vdvae.data.prepare.download import download
from vdvae.errors import UserError

CONTENT = bytes(range(256)) * 2000


class Server(ThreadingHTTPServer):
    """Serves files, and misbehaves as told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/file": CONTENT}
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        self.closes_after: int | None = None
        """Bytes, once."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if self.path not in server.files:
            self.send_error(404)
            return
        content = server.files[self.path]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.knows_ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if server.closes_after is None else start + server.closes_after
        server.closes_after = None
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("there", [0, 1000, len(CONTENT)])
def test_what_is_there_is_not_fetched_again(there: int, knows_ranges: bool, server: Server, tmp_path: Path) -> None:
    server.knows_ranges = knows_ranges
    if there:
        (tmp_path / "file.part").write_bytes(CONTENT[:there])
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert server.ranges == [f"bytes={there}-" if there else None]


def test_a_connection_that_closes_early_goes_on(server: Server, tmp_path: Path) -> None:
    server.closes_after = 3000
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-"]


def test_failures_keep_what_came(server: Server, tmp_path: Path) -> None:
    with refuses("/nothing 404", UserError):
        download(f"{server.url}/nothing", tmp_path / "nothing")
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    with refuses("1,000 bytes kept", UserError):
        download("http://127.0.0.1:9/file", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]


def test_set_up_from_a_mirror(server: Server, tmp_path: Path, prepare: Prepare) -> None:
    """With a wrong checksum nothing is kept; as a part of the set it is accepted."""
    archives.cifar10_binary(tmp_path)
    archives.cifar10_python(tmp_path)
    server.files |= {f"/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    result = set_up(tmp_path, "cifar10", "--from", server.url)
    assert result.returncode == 2
    says(result.stderr, "bytes official 170,498,071")
    assert list((tmp_path / "data").rglob("*")) == [tmp_path / "data/downloads"]
    assert prepare("cifar10", "--from", server.url, "--partial")[0] == 0
    assert (tmp_path / "data/cifar10/dataset.json").is_file()


def test_a_web_page_under_the_name_of_an_archive(server: Server, tmp_path: Path, prepare: Prepare) -> None:
    server.files["/ffhq-256.npy"] = b"<html>sign in to download</html>"
    status, _, err = prepare("ffhq256", "--from", server.url)
    assert status == 2
    says(err.splitlines()[-1], "error: data/downloads/ffhq-256.npy web page")
    assert list((tmp_path / "data").rglob("*")) == [tmp_path / "data/downloads"]
