"""Every fault of a line or a server, played by a loopback server; Drive's own pages by sending Drive's host there."""

import hashlib
import io
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from d4lens.data import download
from d4lens.data.archive import Archive
from d4lens.data.download import DRIVE, Expected, Patience, from_drive, from_path
from d4lens.errors import D4LensError

ID = "1aBcDeFgHiJkLmNoPqRsTuVwXyZ_0-123"
QUOTA = (
    b'<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body><p class="uc-error-subcaption">'
    b"Too many users have viewed or downloaded this file recently. Please try accessing the file again later.</p></body></html>"
)
CONFIRM = (
    b'<!DOCTYPE html><html><body><form id="download-form" action="https://drive.usercontent.google.com/download" '
    b'method="get"><input type="hidden" name="id" value="x"><input type="hidden" name="confirm" value="t"></form></body></html>'
)


# Seconds to wait where the fault is that nothing comes; elsewhere a loaded machine is given all the time it needs.
PATIENT = {"stalled": 0.5, "silent": 0.5}


class Server:
    """Answers each request with the next step of a script (the last one for ever); counts the requests."""

    def __init__(self) -> None:
        self.steps, self.requests, self.body = [], [], b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range")))
                step = outer.steps.pop(0) if len(outer.steps) > 1 else outer.steps[0]
                self.close_connection = True
                step(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # a client that gives up, as some steps make it
        self.released = threading.Event()
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/uc?id={{id}}"

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    # steps
    def whole(self, handler, body: bytes | None = None) -> None:
        """The file, or the part of it that is asked for."""
        body = self.body if body is None else body
        wanted = handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        handler.send_response(206 if wanted else 200)
        if wanted:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send(handler, body[start:])

    def send(self, handler, body: bytes, length: int | None = None, kind: str = "application/octet-stream") -> None:
        handler.send_header("Content-Type", kind)
        if kind != "text/html":
            handler.send_header("Content-Disposition", 'attachment; filename="dataset.zip"')
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.send_header("Connection", "close")  # as is done; unsaid, the client's next request races the closing
        handler.end_headers()
        handler.wfile.write(body)

    def truncated(self, handler) -> None:
        handler.send_response(200)
        self.send(handler, self.body[: len(self.body) // 2], len(self.body))

    def stalled(self, handler) -> None:
        handler.send_response(200)
        self.send(handler, self.body[: len(self.body) // 2], len(self.body))
        handler.wfile.flush()
        self.released.wait(60)

    def silent(self, handler) -> None:
        self.released.wait(60)

    def reset(self, handler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        handler.connection.close()

    def cut(self, n_bytes: int):
        """So many bytes of the whole answer, header and all, and then a reset."""

        def step(handler) -> None:
            answer, handler.wfile = handler.wfile, io.BytesIO()
            self.whole(handler)
            whole = handler.wfile.getvalue()
            handler.wfile = answer
            answer.write(whole[: n_bytes if n_bytes >= 0 else len(whole) + n_bytes])
            self.reset(handler)

        return step

    def drip(self, handler) -> None:
        """A byte now and then, often enough that no wait for the next is long."""
        handler.send_response(200)
        self.send(handler, self.body[:1], len(self.body))
        for byte in self.body[1:]:
            if self.released.wait(0.02):
                break
            handler.wfile.write(bytes([byte]))

    def no_ranges(self, handler) -> None:
        handler.send_response(200)
        self.send(handler, self.body)

    def status(self, code: int):
        def step(handler) -> None:
            handler.send_response(code)
            self.send(handler, b"")

        return step

    def page(self, html: bytes):
        def step(handler) -> None:
            handler.send_response(200)
            self.send(handler, html, kind="text/html")

        return step

    def other(self, body: bytes):
        return lambda handler: self.whole(handler, body)


@pytest.fixture
def server(small_tree, pack):
    server = Server()
    server.body = pack(small_tree, "served.zip").read_bytes()
    yield server
    server.close()


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch from the server through a script of steps; retries wait no time unless told."""

    def run(
        *steps, pinned: bool = True, url: str | None = None, retries: int = 3, counts=None, timeout: float = 60, **more
    ) -> str:
        server.steps, server.requests = list(steps), []
        sha = hashlib.sha256(server.body).hexdigest() if pinned is True else pinned or None
        return from_drive(
            ID,
            tmp_path / "out" / "lenses.zip",
            tmp_path / "cache",
            Expected(sha, counts or {"train": 4, "val": 2}),
            Patience(retries, timeout, 0.0, **more),
            url or server.url,
        )

    return run


@pytest.fixture
def nothing_published(tmp_path):
    def check() -> None:
        assert not (tmp_path / "out" / "lenses.zip").exists()
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
        assert not list((tmp_path / "cache").glob("*.zip"))

    return check


@pytest.fixture
def drive_is_loopback(monkeypatch, server):
    """Requests for Google's hosts reach the loopback server, whatever gdown thinks of them."""
    send = requests.adapters.HTTPAdapter.send

    def redirect(self, request, **options):
        host, _, rest = request.url.removeprefix("https://").partition("/")
        if host.endswith(".google.com"):
            request.url = f"http://127.0.0.1:{server.http.server_port}/{rest}"
        return send(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirect)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_good_file_is_published_and_kept(server, fetch, tmp_path, pinned):
    digest = fetch(server.whole, pinned=pinned)
    assert digest == hashlib.sha256(server.body).hexdigest()
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock") == [f"{ID}.zip"]
    (tmp_path / "out" / "lenses.zip").unlink()
    assert fetch(server.status(404), pinned=pinned) == digest  # out of the cache
    assert server.requests == []
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body


@pytest.mark.parametrize("pinned", [True, False])
def test_a_damaged_cached_file_is_fetched_again(server, fetch, tmp_path, pinned, capsys):
    fetch(server.whole, pinned=pinned)
    cached = tmp_path / "cache" / f"{ID}.zip"
    middle = len(server.body) // 3
    for damage in (server.body[:-100], server.body[:middle] + b"\0\0\0\0" + server.body[middle + 4 :], QUOTA):
        cached.write_bytes(damage)
        fetch(server.whole, pinned=pinned)
        assert len(server.requests) == 1
        assert cached.read_bytes() == (tmp_path / "out" / "lenses.zip").read_bytes() == server.body
        assert "the cached file is not used but fetched again" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["truncated", "stalled", "silent", "reset", "unavailable", "too_many"])
def test_a_passing_fault_is_overcome(server, fetch, tmp_path, fault):
    faults = {"unavailable": server.status(503), "too_many": server.status(429)}
    fetch(faults.get(fault) or getattr(server, fault), server.whole, timeout=PATIENT.get(fault, 60), retries=9)
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body


@pytest.mark.parametrize("fault", ["truncated", "stalled"])
def test_a_retry_goes_on_where_the_line_broke(server, fetch, tmp_path, small_tree, pack, fault):
    noise = random.Random(0).randbytes(1_500_000)
    server.body = pack({**small_tree, "dataset/truth.csv": noise}, "large.zip").read_bytes()
    fetch(getattr(server, fault), server.whole, timeout=PATIENT.get(fault, 60), retries=9)
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body
    assert server.requests[-1][1] == "bytes=524288-"  # gdown writes blocks of half a mebibyte


@pytest.mark.parametrize("n_bytes", [1, 20, 100, 150, 250, 300, 1000, 5000, -2000, -1])
def test_a_reset_at_any_byte_is_overcome(server, fetch, tmp_path, n_bytes):
    """Of the status line, of a header and of the body."""
    fetch(server.cut(n_bytes), server.cut(n_bytes), server.whole)
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body
    assert len(server.requests) >= 3


@pytest.mark.parametrize("n_bytes", [20, 1000, -1])
def test_a_reset_that_lasts_ends_after_the_attempts(server, fetch, nothing_published, n_bytes):
    with pytest.raises(D4LensError, match=r"in 3 attempts: (the connection failed|Download is incomplete)"):
        fetch(server.cut(n_bytes), retries=2)
    nothing_published()


def test_a_drip_is_bounded_in_time(server, fetch, tmp_path, nothing_published):
    with pytest.raises(D4LensError, match=r"in 2 attempts: the server is too slow, .* not whole after 0\.3 s"):
        fetch(server.drip, retries=1, attempt=0.3)
    nothing_published()
    fetch(server.drip, server.whole, attempt=2.0)
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("truncated", "Download is incomplete"),
        ("stalled", "sent nothing for too long"),
        ("silent", "sent nothing for too long"),
        ("reset", "the connection failed"),
        ("unavailable", "answers with status 503"),
    ],
)
def test_a_lasting_fault_ends_after_the_attempts_and_publishes_nothing(server, fetch, nothing_published, fault, said):
    step = {"unavailable": server.status(503)}.get(fault) or getattr(server, fault)
    with pytest.raises(D4LensError) as error:
        fetch(step, retries=2, timeout=PATIENT.get(fault, 60))
    assert "in 3 attempts" in str(error.value)
    assert said in str(error.value)
    assert f"https://drive.google.com/file/d/{ID}/view" in str(error.value)
    assert "set download.source: path and download.path to the file" in str(error.value)
    nothing_published()


def test_nobody_listening_is_said(server, fetch, nothing_published):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{{id}}"
    with pytest.raises(D4LensError, match="in 2 attempts: the connection failed"):
        fetch(server.whole, url=url, retries=1)
    nothing_published()


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_not_asked_again(server, fetch, nothing_published, code):
    with pytest.raises(D4LensError, match=f"in 1 attempt: the server answers with status {code}"):
        fetch(server.status(code))
    assert len(server.requests) == 1
    nothing_published()


@pytest.mark.parametrize("pinned", [True, False])
def test_a_web_page_in_place_of_the_file_is_not_asked_again(server, fetch, nothing_published, pinned):
    with pytest.raises(D4LensError, match=r"in 1 attempt: .* is a web page, not an archive"):
        fetch(server.page(QUOTA), pinned=pinned)
    nothing_published()


def test_wrong_bytes_once_are_fetched_again_and_twice_are_an_error(server, fetch, tmp_path, nothing_published):
    wrong = server.other(b"PK" + server.body[2:-50] + bytes(50))
    with pytest.raises(D4LensError, match=r"in 2 attempts: .* has SHA-256 .*, not the .* of download\.gdrive\.sha256"):
        fetch(wrong, retries=9)
    nothing_published()
    fetch(wrong, server.whole)
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body


def test_without_a_pinned_hash_tree_counts_and_crcs_decide(server, fetch, small_tree, pack, nothing_published):
    whole = server.body
    middle = len(whole) // 3
    short = pack({name: data for name, data in small_tree.items() if name != "dataset/train/no/4.npy"}, "s.zip")
    for body, said in (
        (whole[:middle] + b"\0\0\0\0" + whole[middle + 4 :], "is damaged"),
        (pack({"a": b""}, "a.zip").read_bytes(), "holds no image in dataset/train/no/"),
        (short.read_bytes(), r"holds 3 images in train/no, not the 4 of download\.gdrive\.images_per_class"),
        (b"not a zip", "not a readable zip"),
    ):
        with pytest.raises(D4LensError, match=said):
            fetch(server.other(body), pinned=False)
        nothing_published()


def test_a_piece_left_by_a_killed_download_is_continued_but_not_trusted(server, fetch, tmp_path):
    partial = tmp_path / "cache" / f".{ID}.partial"
    partial.mkdir(parents=True)
    (partial / "archive.zip").write_bytes(b"complete, as gdown would think")
    (partial / "archive.zip12345678.part").write_bytes(server.body[:2000])
    fetch(server.whole)
    assert server.requests[-1][1] == "bytes=2000-"
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body
    assert not partial.exists()
    for left in (
        {"12345678": b"wrong" * 100},
        {"12345678": b"", "87654321": b"two of them"},
        {"12345678": server.body},
    ):
        (tmp_path / "cache" / f"{ID}.zip").unlink()
        partial.mkdir()
        for name, data in left.items():
            (partial / f"archive.zip{name}.part").write_bytes(data)
        fetch(server.whole)
        assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body


def test_a_server_without_ranges_is_read_from_the_start(server, fetch, tmp_path):
    fetch(server.truncated, server.no_ranges)
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body


def test_drives_quota_page_ends_at_once(server, fetch, drive_is_loopback, nothing_published):
    with pytest.raises(D4LensError, match=r"in 1 attempt: Google Drive refuses the file .*Too many users"):
        fetch(server.page(QUOTA), url=DRIVE)
    assert server.requests == [(f"/uc?id={ID}", None)]
    nothing_published()


def test_drives_scan_warning_is_confirmed(server, fetch, drive_is_loopback, tmp_path):
    fetch(server.page(CONFIRM), server.whole, url=DRIVE)
    assert server.requests[1][0].startswith("/download?")
    assert "confirm=t" in server.requests[1][0]
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body


def test_drives_passing_fault_and_unknown_page_are_asked_again(server, fetch, drive_is_loopback, tmp_path):
    fetch(server.status(500), server.page(b"<html>what?</html>"), server.whole, url=DRIVE)
    assert (tmp_path / "out" / "lenses.zip").read_bytes() == server.body
    (tmp_path / "cache" / f"{ID}.zip").unlink()
    with pytest.raises(D4LensError, match=r"in 2 attempts: Google Drive refuses the file"):
        fetch(server.page(b"<html>sign in</html>"), url=DRIVE, retries=1)


def test_no_cookies_are_left_at_home(server, fetch, drive_is_loopback, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fetch(server.whole, url=DRIVE)
    assert not (tmp_path / "home").exists()


def test_waits_double_up_to_a_bound(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.steps = [server.status(503)]
    with pytest.raises(D4LensError, match="in 9 attempts"):
        from_drive(ID, tmp_path / "o.zip", tmp_path, Expected(None, {}), Patience(8, 1.0, 2.0), server.url)
    assert waits == [2, 4, 8, 16, 32, 64, 120, 120]


def test_two_downloads_at_once_and_a_bad_id_are_refused(server, fetch, tmp_path):
    from filelock import FileLock

    (tmp_path / "cache").mkdir()
    with (
        FileLock(tmp_path / "cache" / f"{ID}.lock"),
        pytest.raises(D4LensError, match="another process is downloading"),
    ):
        fetch(server.whole)
    with pytest.raises(D4LensError, match="no Drive id"):
        from_drive("../x", tmp_path / "o.zip", tmp_path, Expected(None, {}), Patience(0, 1.0, 0.0))


def test_a_full_disk_is_said(server, fetch, monkeypatch, nothing_published, tmp_path, small_tree, pack):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.shutil, "copyfile", full)
    with pytest.raises(D4LensError, match="cannot be written: no space left on device"):
        fetch(server.whole)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(D4LensError, match=r"lenses\.zip cannot be written: no space left"):
        from_path(pack(small_tree, "mine.zip"), tmp_path / "out" / "lenses.zip")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_users_zip_or_folder_is_published(tmp_path, pack, small_tree):
    mine = pack(small_tree, "mine.zip")
    from_path(mine, tmp_path / "out" / "lenses.zip")
    with Archive(tmp_path / "out" / "lenses.zip") as archive:
        assert archive.counts()["val"] == {"no": 2, "sphere": 2, "vort": 2}
    with pytest.raises(D4LensError, match=r"download\.path is null"):
        from_path(None, tmp_path / "x.zip")
    with pytest.raises(D4LensError, match="does not exist"):
        from_path(tmp_path / "absent", tmp_path / "x.zip")
    (tmp_path / "page.zip").write_bytes(QUOTA)
    with pytest.raises(D4LensError, match=r"page\.zip is not a readable zip"):
        from_path(tmp_path / "page.zip", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
