"""Fetching the official archives: resumable, verified by checksum, put in place by one rename.

Nothing here runs unless the user asked for it (`--download`). Imported only by the function that downloads.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from hwsim.config import DataError, nearest
from hwsim.data.release import RELEASES

Progress = Callable[[str, int, int | None], None]
"""Called as progress(file name, bytes so far, bytes in all or None if the server does not say)."""

TIMEOUT_S = 30
BLOCK_BYTES = 1 << 18


def fetch(
    url: str, path: Path, *, size: int | None = None, md5: str | None = None, progress: Progress | None = None
) -> Path:
    """Download `url` to `path`; return `path`.

    The bytes go to ``path.part`` and are renamed when `size` and `md5` agree. With an md5, a part left by an earlier
    attempt is continued (HTTP Range; a server that ignores it is read from the start), and a `path` that has that
    md5 already is not fetched again. Two processes must not fetch the same file at the same time.
    Raises `DataError`: no connection or a broken one (the part is kept), a wrong size or checksum (the part is
    removed), a folder or disk that cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        if md5 and path.is_file() and md5_of(path) == md5:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        if md5 is None:  # Only a checksum can vouch that the two halves belong together.
            part.unlink(missing_ok=True)
        _receive(url, part, path.name, md5, progress)
        _verify(url, part, size, md5)
        os.replace(part, path)
    except OSError as e:
        what = e.strerror or e
        raise DataError(f"{e.filename or part}: cannot be written: {what}; choose another --data-dir") from None
    return path


def download_images(
    name: str, data_dir: Path, *, base_url: str | None = None, progress: Progress | None = None
) -> list[Path]:
    """Fetch an image data set's official files into `data_dir`; return their paths.

    base_url: an address that holds the files under their official names, in place of the official servers.
    Raises `DataError` for a name without a download, or as `fetch` does when no address worked.
    """
    known = [r.name for r in RELEASES.values() if r.downloads]
    if name not in known:
        raise DataError(f"download: there is no data set '{name}' to download{nearest(name, known)}")
    paths = []
    for download in RELEASES[name].downloads:
        urls = (base_url,) if base_url else download.urls
        for file in download.files:
            path, failures = data_dir / download.folder / file.name, []
            for url in urls:
                try:
                    address = url.rstrip("/") + "/" + file.name
                    paths.append(fetch(address, path, size=file.size, md5=file.md5, progress=progress))
                    break
                except NetworkError as e:
                    failures.append(str(e))
            else:
                raise NetworkError("; then ".join(failures))
    return paths


class NetworkError(DataError):
    """An address that did not deliver. Another one may."""


def _receive(url: str, part: Path, name: str, md5: str | None, progress: Progress | None) -> None:
    """Bring `part` to the full length that the server announces."""
    have = part.stat().st_size if part.is_file() else 0
    response = _open(url, have)
    if response is None:  # 416: nothing lies beyond the part. It is whole, or longer than the file.
        if md5_of(part) == md5:
            return
        part.unlink()
        have, response = 0, _open(url, 0)
        if response is None:
            raise NetworkError(_failure(url, "the server refuses to send it from the start (HTTP 416)"))
    with response:
        resumed = _resumes_at(response, have)
        done = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length and length.isdigit() else None
        # Unbuffered, so that a full disk is met in write() and not again in close().
        with open(part, "ab" if resumed else "wb", buffering=0) as out:
            if progress:
                progress(name, done, total)
            while block := _read(url, response):
                _write(out, block, part, total)
                done += len(block)
                if progress:
                    progress(name, done, total)
    if total is not None and done < total:
        raise NetworkError(_failure(url, f"the connection closed after {done} of {total} bytes"))


def _open(url: str, have: int):
    """The response to a request for the bytes from `have` on; None when the server has none there (416)."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "hwsim"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code == 416 and have:
            return None
        raise NetworkError(_failure(url, f"HTTP {e.code} {e.reason}")) from None
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise NetworkError(_failure(url, str(getattr(e, "reason", None) or e or type(e).__name__))) from None


def _resumes_at(response, have: int) -> bool:
    """Whether the body continues at byte `have`; a server that ignores Range answers 200 and starts at 0."""
    content_range = response.headers.get("Content-Range") or ""
    return bool(have) and getattr(response, "status", None) == 206 and content_range.startswith(f"bytes {have}-")


def _read(url: str, response) -> bytes:
    try:
        return response.read(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as e:
        raise NetworkError(_failure(url, f"the connection broke ({e or type(e).__name__})")) from None


def _write(out, block: bytes, part: Path, total: int | None) -> None:
    try:
        rest = memoryview(block)
        while rest:
            rest = rest[out.write(rest) :]
    except OSError as e:
        needed = f"the file has {total} bytes; " if total else ""
        raise DataError(
            f"{part}: cannot be written: {e.strerror}; {needed}make room or choose another --data-dir"
        ) from None


def _failure(url: str, reason: str) -> str:
    return (
        f"{url}: {reason}; run the command again to go on where it stopped, or fetch the file by other means and name"
        " its folder with --data-dir"
    )


def _verify(url: str, part: Path, size: int | None, md5: str | None) -> None:
    found_size, found_md5 = part.stat().st_size, md5_of(part) if md5 else None
    if (size is None or found_size == size) and found_md5 == md5:
        return
    part.unlink()
    expected = ", ".join([f"{size} bytes"] * (size is not None) + [f"md5 {md5}"] * (md5 is not None))
    found = f"{found_size} bytes" + (f", md5 {found_md5}" if md5 else "")
    raise NetworkError(
        f"{url}: found {found}, expected {expected}; what came was removed; run the command again, or fetch the file by"
        " other means and name its folder with --data-dir"
    )


def md5_of(path: Path) -> str:
    """The md5 of a file's content, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
