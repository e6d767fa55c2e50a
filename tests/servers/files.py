"""A folder served on loopback, as any web server would; a thread of the test's own process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FileServer:
    """Where the folder is served, and how often each path was asked for."""

    url: str
    requests: Counter[str] = field(default_factory=Counter)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, counts: Counter[str], **kwargs: object) -> None:
        self.counts = counts
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.counts[self.path] += 1
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


@contextmanager
def serve_folder(folder: Path) -> Iterator[FileServer]:
    """Serve a folder on a free port until the block ends."""
    counts: Counter[str] = Counter()
    server = _Server(("127.0.0.1", 0), partial(_Handler, directory=str(folder), counts=counts))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield FileServer(f"http://127.0.0.1:{server.server_port}", counts)
    finally:
        server.shutdown()
        server.server_close()
