"""Downloads against a server on this machine: resuming, broken connections, wrong bytes, full disks. No network."""

import gzip
import hashlib
import http.server
import os
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwsim.config import DataError
from hwsim.data.download import download_images, fetch, md5_of
from hwsim.data.image import load_images
from hwsim.data.release import MNIST, RELEASES, Download, File

CONTENT = np.random.default_rng(0).bytes(700_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `ranges` switches Range support; the first `cuts` answers break off in the middle."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/file.bin": CONTENT}
        self.ranges, self.cuts, self.says_length, self.shifted = True, 0, True, False
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        first = start + self.server.shifted
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        body = content[first:]
        if self.server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def part_of(path):
    return path.with_name(path.name + ".part")


def test_a_file_arrives_whole_and_leaves_no_part(server, tmp_path):
    path, seen = tmp_path / "new" / "file.bin", []
    assert fetch(server.url + "/file.bin", path, size=len(CONTENT), md5=MD5, progress=lambda *a: seen.append(a)) == path
    assert path.read_bytes() == CONTENT and not part_of(path).exists()
    assert seen[0] == ("file.bin", 0, len(CONTENT)) and seen[-1] == ("file.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_a_verified_file_is_not_fetched_again_and_a_wrong_one_is_replaced(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    fetch(server.url + "/file.bin", path, md5=MD5)
    assert server.asked == []
    path.write_bytes(b"old")
    fetch(server.url + "/file.bin", path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_a_part_is_continued_where_it_stopped(server, tmp_path):
    path, seen = tmp_path / "file.bin", []
    part_of(path).write_bytes(CONTENT[:1000])
    fetch(server.url + "/file.bin", path, md5=MD5, progress=lambda *a: seen.append(a))
    assert server.asked == [("/file.bin", "bytes=1000-")] and path.read_bytes() == CONTENT
    assert seen[0] == ("file.bin", 1000, len(CONTENT)) and seen[-1][1] == len(CONTENT)


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.ranges = False
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(CONTENT[:1000])
    fetch(server.url + "/file.bin", path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_a_range_that_starts_elsewhere_is_not_appended(server, tmp_path):
    server.shifted = True
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match="found 698999 bytes"):
        fetch(server.url + "/file.bin", path, md5=MD5)


def test_a_whole_part_needs_no_more_bytes(server, tmp_path):
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(CONTENT)
    fetch(server.url + "/file.bin", path, md5=MD5)
    assert path.read_bytes() == CONTENT and server.asked == [("/file.bin", f"bytes={len(CONTENT)}-")]


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(CONTENT + b"more")
    fetch(server.url + "/file.bin", path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_without_a_checksum_a_part_is_not_trusted(server, tmp_path):
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(b"x" * 1000)
    fetch(server.url + "/file.bin", path)
    assert path.read_bytes() == CONTENT and server.asked == [("/file.bin", None)]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_a_broken_connection_keeps_the_part_and_the_next_call_goes_on(server, tmp_path, ranges):
    server.cuts, server.ranges = 1, ranges
    path = tmp_path / "file.bin"
    with pytest.raises(DataError) as e:
        fetch(server.url + "/file.bin", path, md5=MD5)
    message = str(e.value)
    assert "\n" not in message and server.url in message and "350000 of 700000 bytes" in message
    assert "run the command again" in message and "--data-dir" in message
    assert part_of(path).read_bytes() == CONTENT[:350_000] and not path.exists()
    fetch(server.url + "/file.bin", path, md5=MD5)
    assert path.read_bytes() == CONTENT and server.asked[1] == ("/file.bin", "bytes=350000-")


def test_a_server_that_does_not_say_the_length_is_held_to_the_size(server, tmp_path):
    server.says_length = False
    path, seen = tmp_path / "file.bin", []
    fetch(server.url + "/file.bin", path, size=len(CONTENT), progress=lambda *a: seen.append(a))
    assert path.read_bytes() == CONTENT and seen[-1] == ("file.bin", len(CONTENT), None)
    server.cuts = 1
    with pytest.raises(DataError, match="found 350000 bytes, expected 700000 bytes"):
        fetch(server.url + "/file.bin", tmp_path / "other.bin", size=len(CONTENT))


def test_a_wrong_checksum_names_both_and_removes_the_part(server, tmp_path):
    path = tmp_path / "file.bin"
    with pytest.raises(DataError, match=f"found 700000 bytes, md5 {MD5}, expected md5 {'0' * 32}"):
        fetch(server.url + "/file.bin", path, md5="0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_stale_part_is_found_out_and_the_next_call_starts_afresh(server, tmp_path):
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match=f"expected md5 {MD5}"):
        fetch(server.url + "/file.bin", path, md5=MD5)
    fetch(server.url + "/file.bin", path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_no_server_and_no_file_are_one_line_with_the_address(server, tmp_path):
    for url, reason in (
        (server.url + "/nothing", "HTTP 404"),
        ("http://127.0.0.1:9/file.bin", "refused|unreachable|timed out"),
        ("nonsense", "unknown url type"),
    ):
        with pytest.raises(DataError, match=reason) as e:
            fetch(url, tmp_path / "file.bin", md5=MD5)
        assert url in str(e.value) and "\n" not in str(e.value) and "--data-dir" in str(e.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_with_the_size_of_the_file(server, tmp_path):
    path = tmp_path / "file.bin"
    os.symlink("/dev/full", part_of(path))
    with pytest.raises(DataError, match=r"file\.bin\.part: cannot be written: No space left .* 700000 bytes"):
        fetch(server.url + "/file.bin", path, md5=MD5)


def test_a_folder_that_cannot_be_made_is_reported(server, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written: .*--data-dir"):
        fetch(server.url + "/file.bin", tmp_path / "plain" / "file.bin", md5=MD5)


@pytest.fixture
def small_mnist(server, monkeypatch):
    """An "mnist" of 20 + 20 images of 1 x 2 on the server, and its release."""
    files, labels = {}, np.arange(20, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        pixels = np.stack([labels, labels], 1)
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, 20, 1, 2) + pixels.tobytes()
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, 20) + labels.tobytes()
    packed = {name + ".gz": gzip.compress(payload, mtime=0) for name, payload in files.items()}
    server.files = {"/mirror/" + name: payload for name, payload in packed.items()}
    listed = tuple(File(name, len(p), hashlib.md5(p).hexdigest()) for name, p in packed.items())
    a, b, c, d = (File(name, len(p), hashlib.md5(p).hexdigest()) for name, p in files.items())
    release = replace(
        MNIST,
        shape_CHW=(1, 1, 2),
        train=20,
        test=20,
        validation=10,
        layouts=(replace(MNIST.layouts[0], train=(a, b), test=(c, d)),),
        downloads=(Download("MNIST/raw", listed, (server.url + "/dead/", server.url + "/mirror/")),),
    )
    monkeypatch.setitem(RELEASES, "mnist", release)
    return release


def test_download_fetches_what_is_missing_from_the_first_mirror_that_has_it(small_mnist, server, tmp_path):
    seen = []
    d = load_images("mnist", data_dir=tmp_path, download=True, progress=lambda *a: seen.append(a[0]))
    assert len(d.test) == 20 and len(set(seen)) == 4
    assert [path for path, _ in server.asked[:2]] == [f"/{at}/train-images-idx3-ubyte.gz" for at in ("dead", "mirror")]
    server.asked.clear()
    assert load_images("mnist", data_dir=tmp_path, download=True).checksum == d.checksum
    assert server.asked == [], "data that are there are not fetched again"


def test_nothing_is_downloaded_unless_asked(small_mnist, server, tmp_path):
    with pytest.raises(DataError, match="--download"):
        load_images("mnist", data_dir=tmp_path)
    assert server.asked == [] and list(tmp_path.iterdir()) == []


def test_a_mirror_of_ones_own_replaces_the_official_addresses(small_mnist, server, tmp_path):
    paths = download_images("mnist", tmp_path, base_url=server.url + "/mirror")
    assert sorted(p.name for p in paths) == sorted(f.name for f in small_mnist.downloads[0].files)
    assert all(
        p.parent == tmp_path / "MNIST" / "raw" and path.startswith("/mirror/")
        for p in paths
        for path, _ in server.asked
    )
    assert [md5_of(p) for p in paths] == [f.md5 for f in small_mnist.downloads[0].files]


def test_when_every_address_fails_each_is_named(small_mnist, server, tmp_path):
    server.files = {}
    with pytest.raises(DataError) as e:
        download_images("mnist", tmp_path)
    assert "/dead/train-images" in str(e.value) and "/mirror/train-images" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["digits", "imagenet"])
def test_a_data_set_without_a_download_is_refused(name, tmp_path):
    with pytest.raises(DataError, match=f"no data set '{name}' to download; "):
        download_images(name, tmp_path)


def test_official_addresses_are_folders():
    urls = [url for r in RELEASES.values() for d in r.downloads for url in d.urls]
    assert urls and all(url.startswith("http") and url.endswith("/") for url in urls)
