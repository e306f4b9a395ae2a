"""The download; the network is a server on 127.0.0.1."""

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.official import Official, check_message, md5

from datamodules.sources import (
    ARCHIVE,
    BATCHES,
    DataError,
    Layout,
    download,
    load_cifar10,
    resolve_source,
)
from datamodules.sources.download import download_cifar10


class Host:
    """A server whose paths are hosts of different temper; ``urls`` makes the download try them in turn."""

    def __init__(self, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw = raw
        self.monkeypatch = monkeypatch
        self.asked: list[str] = []
        self.closing = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                host.asked.append(self.path[1:])
                with suppress(OSError):  # the client hung up, as it should
                    host.answer(self, self.path[1:])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, temper: str) -> None:
        if temper == "missing":
            request.send_error(404)
            return
        body = self.raw
        if temper == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if temper == "page":
            body = b"<html>Please log in</html>"
        if temper == "endless":
            body *= 3
        request.send_response(200)
        if temper not in ("endless", "unsized"):
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if temper == "stall":
            request.wfile.write(body[:100])
            self.closing.wait(10)
        elif temper == "slow":
            for start in range(0, len(body), 100):
                request.wfile.write(body[start : start + 100])
                if self.closing.wait(0.01):
                    break
        elif temper == "short":
            request.wfile.write(body[:1000])
        else:
            request.wfile.write(body)

    def urls(self, *tempers: str) -> None:
        port = self.server.server_address[1]
        self.monkeypatch.setattr(download, "URLS", tuple(f"http://127.0.0.1:{port}/{t}" for t in tempers))

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host(official: Official, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    raw = official.archive_bytes()
    monkeypatch.setattr(download, "ARCHIVE_MD5", md5(raw))
    monkeypatch.setattr(download, "ARCHIVE_BYTES", len(raw))
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(download, "PROBE_SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    host = Host(raw, monkeypatch)
    yield host
    host.close()


@pytest.mark.parametrize(
    ("temper", "why"),
    [
        ("missing", "HTTP Error 404: Not Found"),
        ("stall", "timed out"),
        ("slow", "too slow"),
        ("wrong", "MD5"),
        ("page", "sent 26 bytes"),
        ("short", "sent 1000 bytes"),
        ("endless", "sent "),
    ],
)
def test_second_host_is_tried(
    host: Host, tmp_path: Path, temper: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.urls(temper, "good")
    root = tmp_path / "new" / "data"
    layout = resolve_source(root, "cifar10") if temper != "slow" else download_cifar10(root, attempt_seconds=1)
    assert host.asked == [temper, "good"]
    assert layout == Layout("archive", root / ARCHIVE)
    assert [path.name for path in root.iterdir()] == [ARCHIVE]  # no .part
    assert (root / ARCHIVE).read_bytes() == host.raw
    assert load_cifar10(layout, "train").images.shape == (15, 3, 32, 32)
    assert why in caplog.text


def test_the_limit_holds_without_a_projection(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PROBE_SECONDS", 1000)
    host.urls("slow")
    with pytest.raises(DataError, match="too slow"):
        download_cifar10(tmp_path, attempt_seconds=0.2)


def test_a_host_that_does_not_tell_the_size(host: Host, tmp_path: Path) -> None:
    host.urls("unsized")
    assert download_cifar10(tmp_path).path.read_bytes() == host.raw


def test_found_is_not_downloaded(host: Host, folders: Layout, tmp_path: Path) -> None:
    host.urls("good")
    assert resolve_source(tmp_path, "auto") == folders
    assert host.asked == []


def test_all_hosts_fail(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host.urls("missing", "wrong")
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path, "cifar10")
    check_message(
        caught.value,
        "root: no CIFAR-10 in ",
        tmp_path,
        BATCHES,
        ARCHIVE,
        "train/<class>/",
        "HTTP Error 404: Not Found",
        "MD5 is",
        "python scripts/fit.py -c configs/quickstart.yaml",
    )
    caplog.clear()
    assert resolve_source(tmp_path, "auto") is None
    assert "HTTP Error 404: Not Found" in caplog.records[-1].getMessage()
    assert caplog.records[-1].getMessage().endswith("Using shapes10, the drawn stand-in, instead.")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    for root in ("old/new/data", "old"):
        with pytest.raises(DataError):
            resolve_source(tmp_path / root, "cifar10")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]  # what it made is gone, what was there is not


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "URLS", ("http://127.0.0.1:1/x",))
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1: Connection refused"):
        download_cifar10(tmp_path)


def test_ctrl_c_leaves_no_part(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.urls("good")

    class Interrupted(io.BytesIO):
        def update(self, data: bytes) -> None:
            assert len(list(tmp_path.glob("*.part"))) == 1
            raise KeyboardInterrupt

    monkeypatch.setattr(hashlib, "md5", lambda **kwargs: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        download_cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []
