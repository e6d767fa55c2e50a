"""Files of a dataset, on a disk or an object store: the only place that knows s3:// from a path.

`commit()` is the only way to publish a file. On a disk it is a temporary name, an fsync and a rename; on an object
store one PUT or one completed multipart upload. Either way a reader sees the whole file or none.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra.errors import DatasetError

TEMPORARY = ".tmp"
ORPHAN_AGE_S = 86_400.0
SWEEPS_IN_A_ROW = 1_000
_serial = count()


@dataclass(frozen=True, slots=True)
class Committed:
    """A published file: its name below the storage's root, bytes, and blake2b-128 as hex.

    made_as: its digest when its step made it, where rows have been removed from it since.
    """

    name: str
    size: int
    digest: str
    made_as: str | None = None

    @property
    def identity(self) -> str:
        """What later steps know the file by: it outlives a removal, so that nothing is made anew because of one."""
        return self.made_as or self.digest


class Storage:
    """One folder, named by a path or an fsspec url. Cheap to pickle: a worker opens its own connection."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        # A worker may stand in another folder than the command.
        self.url = os.path.abspath(text.removeprefix("file://")) if _is_local(text) else text.rstrip("/")

    @classmethod
    def of_file(cls, path: str) -> tuple[Storage, str]:
        """The folder that a file lies in, and its name there."""
        folder, slash, name = path.rpartition("/")
        return cls(folder or ("/" if slash else ".")), name

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.url,))

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @cached_property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # A listing must show what another worker has just published.
        options = {} if _is_local(self.url) else {"use_listings_cache": False}
        filesystem, root = fsspec.url_to_fs(self.url, **options)
        return filesystem, root.rstrip("/")

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The fsspec filesystem that holds the folder."""
        return self._opened[0]

    @property
    def is_local(self) -> bool:
        """Is this a folder of a mounted disk?"""
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The file's path as its filesystem knows it."""
        root = self._opened[1]
        return f"{root}/{name}" if name else root

    def file_url(self, name: str) -> str:
        """The file's path (on a disk) or its full url (elsewhere): what DuckDB and messages use."""
        return self.path(name) if self.is_local else cast(str, self.filesystem.unstrip_protocol(self.path(name)))

    def inside(self, url: str) -> str | None:
        """The file's name below the root, or None where it lies elsewhere."""
        root = self.file_url("") + "/"
        return url.removeprefix(root) if url.startswith(root) else None

    def open(self, name: str) -> IO[bytes]:
        """Open a published file for reading, seekable."""
        return cast(IO[bytes], self.filesystem.open(self.path(name), "rb"))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file's bytes, or those in [start, end). Raises FileNotFoundError."""
        return cast(bytes, self.filesystem.cat_file(self.path(name), start=start, end=end))

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Whole small files, many at once (an object store is asked concurrently)."""
        paths = {self.path(name): name for name in names}
        if not paths:
            return {}
        if self.is_local:
            return {name: Path(path).read_bytes() for path, name in paths.items()}
        found = self.filesystem.cat(list(paths), on_error="raise")
        if isinstance(found, bytes):  # fsspec answers a single path with bare bytes
            return {next(iter(paths.values())): found}
        return {paths[path.removeprefix("/") if path not in paths else path]: data for path, data in found.items()}

    def exists(self, name: str = "") -> bool:
        """Is there a published file (or, for "", the folder itself)?"""
        return bool(self.filesystem.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Bytes of a published file. Raises FileNotFoundError."""
        return int(self.filesystem.size(self.path(name)))

    def list(self, folder: str = "", suffix: str = "") -> list[str]:
        """Sorted names of the files directly inside `folder` that end in `suffix`; empty where it is absent."""
        try:
            entries = self.filesystem.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        prefix = f"{folder}/" if folder else ""
        names = (entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")
        return sorted(prefix + name for name in names if name.endswith(suffix) and not name.startswith("."))

    def sizes(self) -> dict[str, int]:
        """Every published file below the root and its bytes, sorted by name: one listing instead of a question each."""
        return {name: int(entry["size"]) for name, entry in self._entries().items()}

    def stamps(self) -> dict[str, str]:
        """Every published file and a word that changes when it is written anew: bytes, with the time or the ETag."""
        return {
            name: f"{entry['size']}-{entry.get('ETag') or entry.get('mtime') or ''}"
            for name, entry in self._entries().items()
        }

    def _entries(self) -> dict[str, dict[str, Any]]:
        root = self.path()
        found = {
            path[len(root) :].lstrip("/"): entry for path, entry in self.filesystem.find(root, detail=True).items()
        }
        return {name: found[name] for name in sorted(found) if not name.startswith(TEMPORARY)}

    def remove(self, name: str) -> None:
        """Remove a file; an absent one is no error, so that a killed removal can be run again."""
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it; an absent one is no error."""
        with suppress(FileNotFoundError):
            self.filesystem.rm(self.path(name), recursive=True)

    @contextmanager
    def commit(self, name: str) -> Iterator[Draft]:
        """Write a file under a temporary name, publish it when the block ends, discard it when the block raises.

        Yields a Draft: write to `draft.path` (a local file); after the block `draft.committed` tells size and digest.
        """
        draft = Draft(name, self._temporary(name))
        try:
            yield draft
            draft.committed = Committed(name, draft.path.stat().st_size, _digest_of(draft.path))
            self._publish(draft.path, name)
        finally:
            draft.path.unlink(missing_ok=True)

    def commit_bytes(self, name: str, data: bytes) -> Committed:
        """Publish a small file at once."""
        if not self.is_local:
            self.filesystem.pipe_file(self.path(name), data)
            return Committed(name, len(data), digest_bytes(data))
        with self.commit(name) as draft:
            draft.path.write_bytes(data)
        return draft.result()

    def digest(self, name: str) -> str:
        """blake2b-128 of a published file, read as a stream."""
        with self.open(name) as file:
            return _digest_stream(file)

    def sweep(self, orphan_age_s: float = ORPHAN_AGE_S) -> int:
        """Remove temporary files whose writer is gone: a killed worker leaves nothing behind. Returns how many.

        orphan_age_s: of another machine's files, those older than this are thought abandoned.
        """
        folder = self._temporary_folder()
        if not folder.is_dir():
            return 0
        num_removed = 0
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if _is_orphan(path, orphan_age_s):
                    path.unlink()
                    num_removed += 1
        with suppress(OSError):  # another worker may have begun to write
            folder.rmdir()
        return num_removed

    def _temporary(self, name: str) -> Path:
        label = f"{socket.gethostname()}~{os.getpid()}~{next(_serial)}~{name.replace('/', '~')}"
        path = self._temporary_folder() / label
        for _ in range(SWEEPS_IN_A_ROW):
            # Another worker's sweep may take the empty folder away at any moment.
            with suppress(FileNotFoundError, FileExistsError):
                # Elsewhere than in the dataset it lies in a folder of all users' files: nobody else's business.
                path.parent.mkdir(mode=0o777 if self.is_local else 0o700, parents=True, exist_ok=True)
                path.touch()
                return path
        raise DatasetError(f"{path.parent}: no temporary file can be made there; is it a folder?")

    def _temporary_folder(self) -> Path:
        # The same disk as the final name, or the rename would be a copy.
        return Path(self.path(TEMPORARY)) if self.is_local else Path(tempfile.gettempdir()) / f"pairmill-{os.getuid()}"

    def _publish(self, temporary: Path, name: str) -> None:
        if not self.is_local:
            self.filesystem.put_file(str(temporary), self.path(name))
            return
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        final = Path(self.path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        # Rename last: a preempted worker must not leave half a file under its final name.
        os.replace(temporary, final)


class Draft:
    """A file on its way: write to `path`."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.committed: Committed | None = None

    def result(self) -> Committed:
        """What was published. Only after the commit block."""
        assert self.committed is not None, "the commit block has not ended"
        return self.committed


def digest_bytes(data: bytes) -> str:
    """blake2b-128 as hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return _digest_stream(file)


def _digest_stream(file: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def _is_orphan(path: Path, age_s: float) -> bool:
    host, _, rest = path.name.partition("~")
    pid = rest.partition("~")[0]
    if host == socket.gethostname() and pid.isdigit():
        return not Path(f"/proc/{pid}").exists() if Path("/proc").is_dir() else not _is_alive(int(pid))
    return time.time() - path.stat().st_mtime > age_s


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
