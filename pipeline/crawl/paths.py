"""Where archives lie: paths, globs, fsspec urls and Common Crawl's listings to a sorted list of files; opening one."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import IO, cast

import fsspec
from fsspec.utils import get_protocol

from infra.errors import UsageError

ARCHIVE_PREFIX = "https://data.commoncrawl.org/"
MAX_LISTING_BYTES = 256 << 20  # decoded
_LISTINGS = (".paths", ".paths.gz")


def open_archive(path: str) -> IO[bytes]:
    """Open a path or fsspec url for reading, seekable."""
    return cast(IO[bytes], fsspec.open(path, "rb").open())


def archive_size(path: str) -> int | None:
    """Bytes of the file; None where its storage does not say."""
    filesystem, name = fsspec.url_to_fs(path)
    size = filesystem.size(name)
    return None if size is None else int(size)


def expand_paths(patterns: Iterable[str], prefix: str = ARCHIVE_PREFIX) -> list[str]:
    """Archive files, sorted and distinct, of paths, globs, fsspec urls and listings (`.paths`, `.paths.gz`).

    prefix: where the relative entries of a listing lie. Raises UsageError for a pattern that matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        files = _matches(pattern)
        if not files:
            raise UsageError(f"--warc {pattern}: no such file; give a file, a glob in quotes, or a .paths.gz listing")
        for file in files:
            if file.endswith(_LISTINGS):
                found.update(_entries(file, prefix))
            else:
                found.add(file)
    return sorted(found)


def _matches(pattern: str) -> list[str]:
    try:
        filesystem, name = fsspec.url_to_fs(pattern)
        is_local = get_protocol(pattern) in ("file", "local")
        # A name with brackets in it may be meant as it is.
        if filesystem.isfile(name):
            return [name if is_local else pattern]  # a worker may stand in another folder
        if not any(sign in name for sign in "*?["):
            return []
        files = [file for file in filesystem.glob(name) if filesystem.isfile(file)]
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise UsageError(f"--warc {pattern}: {error}") from None
    return files if is_local else [filesystem.unstrip_protocol(file) for file in files]


def _entries(listing: str, prefix: str) -> list[str]:
    with open_archive(listing) as stream:
        data = stream.read(MAX_LISTING_BYTES + 1)
    try:
        if data[:2] == b"\x1f\x8b":
            data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, MAX_LISTING_BYTES + 1)
        lines = data.decode().split()
    except (zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"--warc {listing}: not a listing of archives, a path a line ({error})") from None
    if len(data) > MAX_LISTING_BYTES:
        raise UsageError(f"--warc {listing}: longer than {MAX_LISTING_BYTES >> 20} MiB; split it")
    if not lines:
        raise UsageError(f"--warc {listing}: the listing is empty")
    return [line if "://" in line else f"{prefix.rstrip('/')}/{line.lstrip('/')}" for line in lines]
