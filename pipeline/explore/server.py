"""The explorer's server: loopback alone, a token, and a page that may load nothing from elsewhere.

Whoever may open the page may see the dataset, so: it binds 127.0.0.1; every request carries the token that the printed
address has (a cookie keeps it after the first); the Host header must be ours, or a name that a stranger points at
127.0.0.1 would do; there is no CORS; texts of the web never become HTML.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError

from infra.errors import DatasetError, PairmillError, UsageError
from infra.recipe import Config
from pipeline.explore.counts import Explorer
from pipeline.explore.gallery import Gallery, View
from pipeline.explore.load import Loaded
from pipeline.explore.pictures import stored_image
from pipeline.explore.rules import AskedRules

HOST = "127.0.0.1"
TOKEN_BYTES = 32
MAX_BODY_BYTES = 64 << 10
FILES = Path(__file__).parent / "page"
_CONTENT_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Question(Config):
    """What the page asks about: its rules."""

    rules: AskedRules


class Look(Question):
    """And which rows it wants to see."""

    view: View


class Server:
    """The page and its answers for one loaded dataset. `url` opens it, once `start` has been awaited."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.explorer = Explorer(loaded)
        self.gallery = Gallery(self.explorer)
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.port = 0
        # Pictures that are still read must not keep a slider waiting.
        self._quick, self._patient = ThreadPoolExecutor(1), ThreadPoolExecutor(4)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The address to open, token and all."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    async def start(self, port: int = 0) -> None:
        """Listen on `port` of 127.0.0.1, 0 for any that is free. Raises UsageError where it is taken."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.add_routes([
            web.get("/", self._page),
            web.get("/{name:[a-z]+\\.(js|css|svg)}", self._page),
            web.get("/overview", self._overview),
            web.post("/count", self._count),
            web.post("/effects", self._effects),
            web.post("/rows", self._rows),
            web.get("/image/{row:\\d{1,12}}", self._image),
        ])  # fmt: skip
        # No access log: it would hold the token.
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, port).start()
        except OSError as error:
            await self.stop()
            raise UsageError(f"port {port} of {HOST}: {error.strerror}; give another --port, or none") from None
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Let go of the port and the threads."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._quick.shutdown()
        self._patient.shutdown()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse strangers; say our own errors in words; give every answer the headers."""
        try:
            response = (
                await handler(request) if self._may(request) else _error(403, "open the address as it was printed")
            )
        except web.HTTPException as error:
            response = _error(error.status, error.reason)
        except DatasetError as error:
            response = _error(404, str(error))
        except PairmillError as error:
            response = _error(400, str(error))
        response.headers.update(_HEADERS)
        return response

    def _may(self, request: web.Request) -> bool:
        if request.host not in (f"{HOST}:{self.port}", f"localhost:{self.port}"):
            return False
        given = (request.query.get("token"), request.cookies.get(self._cookie), request.headers.get("X-Token"))
        told = [token.encode("utf-8", "replace") for token in given if token]
        return any(secrets.compare_digest(token, self.token.encode()) for token in told)

    @property
    def _cookie(self) -> str:
        # Cookies know no ports: explorers side by side have one each.
        return f"explore_{self.port}"

    async def _page(self, request: web.Request) -> web.Response:
        path = FILES / request.match_info.get("name", "index.html")
        if not path.is_file():
            raise web.HTTPNotFound
        response = web.Response(body=path.read_bytes(), content_type=_CONTENT_TYPES[path.suffix], charset="utf-8")
        response.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict", path="/")
        return response

    async def _overview(self, request: web.Request) -> web.Response:
        return await self._answer(self._patient, overview, self.explorer)

    async def _count(self, request: web.Request) -> web.Response:
        question = await _read(request, Question)
        return await self._answer(self._quick, self.explorer.count, question.rules)

    async def _effects(self, request: web.Request) -> web.Response:
        question = await _read(request, Question)
        return await self._answer(self._patient, self.explorer.effects, question.rules)

    async def _rows(self, request: web.Request) -> web.Response:
        look = await _read(request, Look)
        return await self._answer(self._patient, self.gallery.page, look.rules, look.view)

    async def _image(self, request: web.Request) -> web.Response:
        row = int(request.match_info["row"])
        loop = asyncio.get_running_loop()
        data, kind = await loop.run_in_executor(self._patient, stored_image, self.loaded, row)
        return web.Response(body=data, content_type=kind)

    async def _answer(self, threads: Executor, ask: Callable[..., Any], *words: Any) -> web.Response:
        found = await asyncio.get_running_loop().run_in_executor(threads, ask, *words)
        return web.json_response(found)


def overview(explorer: Explorer) -> dict[str, Any]:
    """What the page needs to begin: the dataset, its columns, and how their values lie."""
    loaded = explorer.loaded
    url = loaded.rows.dataset.storage.url
    columns = [
        {
            **asdict(column),
            "path": column.path,
            "axis": asdict(explorer.axes[column.sql]) if column.is_number else None,
            "bins": explorer.bins(column),
            "missing": explorer.num_missing(column),
        }
        for column in loaded.columns
    ]
    return {
        "name": url.rpartition("/")[2],
        "url": url,
        "num_rows": loaded.num_rows,
        "num_seen": loaded.num_seen,
        "num_shards": len(loaded.shards),
        "has_images": loaded.rows.kind == "stored",
        "columns": columns,
        "left_out": loaded.left_out,
        "command": f"python -m filters select {shlex.quote(url)} --rules rules.yaml --name NAME",
    }


M = TypeVar("M", bound=Question)


async def _read(request: web.Request, kind: type[M]) -> M:
    if request.content_type != "application/json":  # no form of another page
        raise UsageError("ask in application/json")
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
