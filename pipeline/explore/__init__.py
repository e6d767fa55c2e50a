"""A local page to find rules by eye: sliders over scores, counts that move along, pictures on both sides of a cut."""

from __future__ import annotations

import asyncio
import os
import signal
import webbrowser
from collections.abc import Callable, Sequence

from infra.dataset import Dataset
from pipeline.explore.load import MAX_ROWS, Loaded, load
from pipeline.explore.server import Server


def explore(
    dataset_url: str | os.PathLike[str],
    port: int = 0,
    *,
    captions: Sequence[str] = (),
    max_rows: int = MAX_ROWS,
    open_browser: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Load a dataset's scores and serve the page on 127.0.0.1 until SIGINT or SIGTERM; writes nothing.

    port: 0 for any that is free. captions: caption tables that are looked at beside the web's captions.
    on_ready: called with the address to open, which holds the token.
    Raises DatasetError where there are no rows, UsageError where the port is taken.
    """
    loaded = load(Dataset(dataset_url), captions, max_rows)
    asyncio.run(_serve(loaded, port, open_browser, on_ready))


async def _serve(loaded: Loaded, port: int, open_browser: bool, on_ready: Callable[[str], None]) -> None:
    server = Server(loaded)
    await server.start(port)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    on_ready(server.url)
    if open_browser:
        webbrowser.open(server.url)
    await ended.wait()
    await server.stop()
