"""Bytes out of tars: local ones as they lie, those of an object store through a bounded folder of copies."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from infra.log import get_logger
from infra.storage import Storage

log = get_logger("copies")

MAX_IMAGE_BYTES = 1 << 28
HELD_FILES = 128


class Copies:
    """Reads ranges of tars. Picklable; several processes may share the folder.

    folder: where copies of remote tars lie. max_bytes: they are bounded by it, the least recently opened go first; with
    0 nothing is copied, and every image is asked for by its range: right for a selection of a few percent.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._open: OrderedDict[tuple[str, str], int] = OrderedDict()

    def __reduce__(self) -> tuple[type[Copies], tuple[str, int]]:
        return (Copies, (str(self._folder), self._max_bytes))

    def read(self, storage: Storage, name: str, offset: int, size: int) -> bytes | str:
        """Some bytes of a file; or why there are none, in a word."""
        if size > MAX_IMAGE_BYTES:
            return "too_large"
        try:
            if storage.is_local or self._max_bytes:
                data = os.pread(self._file(storage, name), size, offset)
            else:
                data = storage.read(name, offset, offset + size)
        except FileNotFoundError:
            return "no_tar"
        except Exception as error:  # noqa: BLE001 - each object store has errors of its own
            log.warning("tar=%s offset=%d error=%r", storage.file_url(name), offset, error)
            return "unreadable_tar"
        return data if len(data) == size else "tar_cut_short"

    def _file(self, storage: Storage, name: str) -> int:
        """A file that is open for reading: the tar, or its copy."""
        key = (storage.url, name)
        if key not in self._open:
            path = storage.path(name) if storage.is_local else self._copy(storage, name)
            self._open[key] = os.open(path, os.O_RDONLY)
            if len(self._open) > HELD_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(key)
        return self._open[key]

    def _copy(self, storage: Storage, name: str) -> Path:
        """The copy of a remote file; made by one process while the others wait for it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stem = hashlib.blake2b(f"{storage.url}\0{name}".encode(), digest_size=16).hexdigest()
        path = self._folder / f"{stem}.tar"
        with (self._folder / "lock").open("w") as lock, (self._folder / f"{stem}.lock").open("w") as own:
            fcntl.flock(own, fcntl.LOCK_EX)
            if path.exists():
                os.utime(path)
                return path
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(storage.size(name))
            part = path.with_suffix(".part")
            part.touch()
            os.truncate(part, storage.size(name))  # its room is taken before another process looks
            fcntl.flock(lock, fcntl.LOCK_UN)
            storage.filesystem.get_file(storage.path(name), str(part))
            os.replace(part, path)
            return path

    def _make_room(self, wanted: int) -> None:
        """Remove the least recently opened copies. Who has one open reads on."""
        held = []
        for path in self._folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                held.append((path.stat().st_mtime, path.stat().st_size, path))
        taken = sum(size for _, size, _ in held) + sum(path.stat().st_size for path in self._folder.glob("*.part"))
        for _, size, path in sorted(held):
            if taken + wanted <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            taken -= size
