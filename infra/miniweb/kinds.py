"""The kinds of image served: formats, honest oddities and ills, each with the outcome a download must have."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

from infra.miniweb.pictures import ENCODERS, Picture, extension
from infra.miniweb.site import DEAD_HOST, Answer, Site

MEDIA_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How an image is served. `answer` are fields of Answer that differ from the plain one.

    url: where the candidate points instead of at the image ("{id}" is filled in). hops: redirects before the image,
    status and target; "" is the image itself, "loop" the first hop again. rare: costs the client a deadline.
    """

    outcome: str = "success"
    host: str = "cdn"
    format: str = "jpeg"
    extension: str | None = None
    size: tuple[int, int] | None = None
    answer: dict[str, Any] | None = None
    url: str | None = None
    hops: tuple[tuple[int, str], ...] = ()
    rare: bool = False


def place_image(site: Site, kind: Kind, image_id: int, picture: Picture, query: str = "") -> str:
    """Serve the picture as the kind says; returns the url that a page's img points at."""
    if kind.url:
        return kind.url.format(id=image_id, port=site.port)
    suffix = kind.extension or extension(kind.format)
    answer = image_answer(picture, suffix, **(kind.answer or {}))
    if not kind.hops:
        return site.serve(kind.host, f"/i/{image_id}.{suffix}{query}", answer)
    if any(target == "" for _, target in kind.hops):
        site.serve(kind.host, f"/i/{image_id}.{suffix}", answer)
    paths = [f"/r{n}/{image_id}.{suffix}" for n in range(len(kind.hops))]
    for n, (status, target) in enumerate(kind.hops):
        known = {"": f"/i/{image_id}.{suffix}", "loop": paths[0], "next": paths[(n + 1) % len(paths)]}
        location = known.get(target, target)
        # Every other hop tells its target in full: both forms occur.
        if location.startswith("/") and n % 2 == 0:
            location = site.url(kind.host, location)
        site.serve(kind.host, paths[n], Answer(status=status, headers=(("Location", location),)))
    return site.url(kind.host, paths[0])


def image_answer(picture: Picture, suffix: str, **changes: Any) -> Answer:
    """The plain answer for a picture, with the given fields changed."""
    return replace(Answer(picture, MEDIA_TYPES[suffix]), **changes)


def _once(status: int, *headers: tuple[str, str]) -> dict[str, Any]:
    return {"first": Answer(b"later\n", "text/plain", status, headers)}


def _page(status: int, *headers: tuple[str, str]) -> dict[str, Any]:
    return {"body": HTML, "media_type": "text/html", "status": status, "headers": headers}


def _png(width: int, height: int) -> bytes:
    """A PNG that declares this size, one bit a pixel, and holds only its first rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes((width // 8 + 1) * 64), 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _endless_gzip() -> bytes:
    """About 250 kB that unpack to 256 MiB: a deflate block of zeros, which a full flush makes repeatable."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * 256


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="200" height="200"><circle cx="100" cy="100" r="80"/></svg>\n'
HTML = b"<!doctype html><html><head><title>Not here</title></head><body><p>The image has moved.</p></body></html>\n"
BOMB = _endless_gzip()

KINDS: dict[str, Kind] = {
    # Formats. All must come out right.
    **{name: Kind(format=name) for name in ENCODERS if name != "jpeg"},
    # Honest oddities. All must come out right as well.
    "png_as_jpg": Kind(format="png", extension="jpg"),
    "octet_stream": Kind(answer={"media_type": "application/octet-stream"}),
    "chunked": Kind(answer={"manner": "chunked"}),
    "until_close": Kind(answer={"manner": "until_close"}),
    "gzipped": Kind(answer={"wrap": "gzip", "headers": (("Content-Encoding", "gzip"),)}),
    "redirect": Kind(hops=((301, ""),)),
    "redirect_chain": Kind(hops=((302, "next"), (307, "next"), (308, ""))),
    "fails_once": Kind(host="flaky", answer=_once(500)),
    "busy_once": Kind(host="busy", answer=_once(429, ("Retry-After", "1"))),
    "other_agent_opt_out": Kind(answer={"headers": (("X-Robots-Tag", "otherbot: noai, noindex"),)}),
    # Statuses.
    "http_404": Kind("http_404", answer=_page(404)),
    "http_410": Kind("http_410", answer=_page(410)),
    "http_500": Kind("http_500", host="broken", answer=_page(500)),
    "busy_always": Kind("rate_limited", host="jammed", answer=_page(429, ("Retry-After", "3600"))),
    # Names, addresses, redirects.
    "dead_name": Kind("dns", url=f"http://{DEAD_HOST}:{{port}}/i/{{id}}.jpg"),
    "closed_port": Kind("connect", url="http://closed.miniweb.test:64999/i/{id}.jpg"),
    "private_address": Kind("blocked_address", url="http://192.168.1.1/i/{id}.jpg"),
    "redirect_loop": Kind("too_many_redirects", hops=((302, "next"), (302, "loop"))),
    "redirect_to_private": Kind("blocked_address", hops=((302, "http://10.0.0.1/secret.jpg"),)),
    "redirect_to_metadata": Kind("blocked_address", hops=((302, "http://169.254.169.254/latest/meta-data/"),)),
    "redirect_to_file": Kind("blocked_scheme", hops=((302, "file:///etc/hostname"),)),
    # The wire. The rare ones cost the client its whole deadline at each attempt.
    "stalled": Kind("timeout", host="slow", answer={"manner": "stall"}, rare=True),
    "stalled_body": Kind("timeout", host="slow", answer={"manner": "stall_body"}, rare=True),
    "drip": Kind("timeout", host="slow", answer={"manner": "drip"}, rare=True),
    "reset": Kind("reset", answer={"manner": "reset"}),
    "wrong_length": Kind("wrong_length", answer={"manner": "short"}),
    "bad_encoding": Kind("bad_encoding", answer={"headers": (("Content-Encoding", "gzip"),)}),
    "gzip_bomb": Kind("too_large", answer={"body": BOMB, "headers": (("Content-Encoding", "gzip"),)}),
    "endless_body": Kind("too_large", answer={"manner": "endless"}),
    "declared_huge_body": Kind("too_large", answer={"manner": "declared_endless"}),
    "big_headers": Kind("headers_too_large", answer={"headers": (("X-Filler", "x" * (1 << 20)),)}),
    # What arrives is no picture, or none that may be decoded.
    "empty": Kind("empty", answer={"body": b""}),
    "html_as_jpeg": Kind("not_image", answer={"body": HTML}),
    "svg": Kind("unsupported_format", extension="svg", answer={"body": SVG}),
    "truncated": Kind("decode_error", answer={"wrap": "half"}),
    "garbage": Kind("decode_error", answer={"body": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 8}),
    "huge_png": Kind("too_many_pixels", format="png", answer={"body": _png(30_000, 30_000)}),
    # Sizes.
    "tracking_pixel": Kind("too_small", format="gif", size=(1, 1)),
    "icon": Kind("too_small", format="png", size=(32, 32)),
    "banner": Kind("too_elongated", size=(1120, 96)),
    "skyscraper": Kind("too_elongated", size=(96, 1040)),
    # Opt-outs.
    "opt_out_noai": Kind("opt_out", answer={"headers": (("X-Robots-Tag", "noai"),)}),
    "opt_out_noimageai": Kind("opt_out", answer={"headers": (("X-Robots-Tag", "noarchive, noimageai"),)}),
}
# Made from an image that an earlier page showed; the outcome is always success.
COPIES = ("exact_duplicate", "near_resized", "near_recompressed", "near_cropped", "shared_image", "repeated_pair")
