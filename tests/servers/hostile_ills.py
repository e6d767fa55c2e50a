"""The table of ills: for each what the hostile server does, and the one reason that a fetch of it must end with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import brotli

from tests.servers import hostile_bodies as bodies
from tests.servers.hostile_bodies import HTML, JPEG
from tests.servers.hostile_manners import (
    Serve,
    chunked,
    coded,
    head,
    in_turn,
    late,
    redirects,
    repeats,
    resets,
    says,
    says_nothing,
    whole,
)


@dataclass(frozen=True)
class Ill:
    """reason: how one attempt of a fetch ends. final: how three attempts end, where that differs.

    image: what a download of images makes of it, where the fetch is well. body: what is fetched, where that is known.
    url: where it is met, if not by a path of its own: {host} {port} {tls_port} {closed}.
    """

    reason: str
    serve: Serve | None = None
    body: bytes | None = None
    final: str | None = None
    image: str | None = None
    url: str | None = None


def _right(serve: Serve, body: bytes = JPEG) -> Ill:
    return Ill("ok", serve, body)


def _elsewhere(reason: str, url: str, body: bytes | None = None) -> Ill:
    return Ill(reason, None, body, url=url)


_OPEN = head(Content_Type="image/jpeg", Connection="close")
_LONG = head(Content_Type="image/jpeg", Content_Length=100_000)
_CHUNKS = head(Transfer_Encoding="chunked")
_STATUS = b"HTTP/1.1 200 OK\r\n"
_LENGTH = b"Content-Length: %d\r\n" % len(JPEG)
_PIECE = bytes(1 << 18)

ILLS: Mapping[str, Ill] = {
    # Time.
    "silent": Ill("timeout", says_nothing),
    "drip": Ill("timeout", repeats(_LONG, b"x", pause_s=0.05)),
    "drip_head": Ill("timeout", repeats(_STATUS, b"x", pause_s=0.05)),
    "drip_chunks": Ill("timeout", repeats(_CHUNKS, b"1\r\nx\r\n", pause_s=0.05)),
    "drip_interim": Ill("timeout", repeats(b"", head("102 Processing"), pause_s=0.05)),
    "stalled_body": Ill("timeout", repeats(_LONG + JPEG, b"", pause_s=0.5)),
    # Each hop is in time; all of them together are not.
    "slow_redirects": Ill("timeout", late(redirects("/slow_redirects?{nth}"), 0.4)),
    # Bytes.
    "endless": Ill("too_large", repeats(_OPEN, _PIECE)),
    "endless_chunks": Ill("too_large", repeats(_CHUNKS, b"40000\r\n" + _PIECE + b"\r\n")),
    "announced_huge": Ill("too_large", repeats(head(Content_Length=10**12), _PIECE)),
    "gzip_bomb": Ill("too_large", coded(bodies.gzip_bomb, "gzip")),
    "gzip_bomb_of_members": Ill("too_large", coded(bodies.gzip_bomb_of_members, "gzip")),
    "nested_bomb": Ill("too_large", coded(bodies.nested_bomb, "gzip, gzip")),
    "deflate_bomb": Ill("too_large", coded(lambda: bodies.zeros_deflated(1 << 30), "deflate")),
    "brotli_bomb": Ill("too_large", coded(bodies.brotli_bomb, "br")),
    "endless_empty_members": Ill(
        "bad_encoding", repeats(head(Content_Encoding="gzip", Connection="close"), bodies.gzip(b"") * 3_000)
    ),
    "big_header": Ill("headers_too_large", repeats(_STATUS + b"X-Filler: ", b"x" * 100_000, times=100)),
    "many_headers": Ill("headers_too_large", repeats(_STATUS, b"X-Filler: %s\r\n" % (b"x" * 50) * 1_000, times=160)),
    "tiny_headers": Ill("headers_too_large", repeats(_STATUS, b"a:\r\n" * 10_000, times=250)),
    "endless_head": Ill("headers_too_large", repeats(_STATUS, b"X-More: of the same\r\n" * 1_000)),
    "big_status_line": Ill("headers_too_large", repeats(b"HTTP/1.1 200 ", b"x" * 100_000, times=100)),
    "interim_flood": Ill("headers_too_large", repeats(b"", head("102 Processing") * 1_000)),
    "trailer_flood": Ill("bad_response", repeats(_CHUNKS + b"0\r\n", b"X-Trailer: x\r\n" * 10_000)),
    "chunk_extension_flood": Ill("too_large", repeats(_CHUNKS + b"5;", b"x" * 100_000)),
    "tiny_chunks": Ill("too_large", repeats(_CHUNKS, b"1;%s\r\nx\r\n" % (b"x" * 1_000) * 100)),
    "flood_after_answer": _right(repeats(whole(), whole() * 500)),
    # Framing.
    "short": Ill("wrong_length", says(head(Content_Length=len(JPEG) + 100) + JPEG, closes=True)),
    "long": _right(says(whole() + bytes(100))),
    "long_with_an_answer": _right(says(whole() + whole(HTML))),
    "negative_length": Ill("bad_response", says(head(Content_Length=-5) + JPEG, closes=True)),
    "two_lengths": Ill("bad_response", says(_STATUS + _LENGTH + b"Content-Length: 6\r\n\r\n" + JPEG)),
    "length_and_chunks": Ill("bad_response", says(head(Content_Length=5, Transfer_Encoding="chunked") + JPEG)),
    "bad_chunks": Ill("bad_response", says(_CHUNKS + b"5\r\nhello\r\nthis is no chunk\r\n")),
    "no_chunks": Ill("bad_response", says(_CHUNKS + JPEG)),
    "chunk_of_2_to_the_80": Ill("bad_response", says(_CHUNKS + b"F" * 20 + b"\r\n")),
    "cut_chunks": Ill("reset", says(_CHUNKS + b"ffff\r\nhello", closes=True)),
    "cut_head": Ill("reset", says(_STATUS + b"Content-Ty", closes=True)),
    "reset_in_body": Ill("reset", resets(_LONG + JPEG)),
    "reset_in_head": Ill("reset", resets(_STATUS + b"Content-Ty")),
    "reset_at_once": Ill("reset", resets(b"")),
    "closes_at_once": Ill("reset", says(b"", closes=True)),
    "not_http": Ill("bad_response", says(b"220 mail.example ESMTP\r\n" * 3, closes=True)),
    "noise": Ill("bad_response", says(bytes(range(256)) * 4, closes=True)),
    "no_head": Ill("bad_response", says(JPEG, closes=True)),
    "nul_in_header": Ill("bad_response", says(_STATUS + b"X: a\0b\r\n" + _LENGTH + b"\r\n" + JPEG)),
    # Odd, but right.
    "right": _right(says(whole())),
    "http_1_0": _right(says(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG, closes=True)),
    "no_reason": _right(says(b"HTTP/1.1 200\r\n" + _LENGTH + b"\r\n" + JPEG)),
    "bare_newlines": _right(says(b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(JPEG) + JPEG)),
    "header_bytes": _right(says(whole(X_Odd="\u00e9\u00ff"))),
    "interim": _right(says(head("100 Continue") + head("103 Early Hints", Link="</a>") + whole())),
    "chunked": _right(says(chunked(JPEG[:1000], JPEG[1000:]))),
    "empty": Ill("ok", says(whole(b"")), b"", image="empty"),
    "gzip": _right(coded(bodies.gzip(JPEG), "gzip")),
    "gzip_members": _right(coded(bodies.gzip(JPEG[:700]) + bodies.gzip(JPEG[700:]) + bytes(9), "x-gzip")),
    "deflate": _right(coded(bodies.deflate(JPEG), "deflate")),
    "bare_deflate": _right(coded(bodies.deflate(JPEG, wbits=-15), "deflate")),
    "brotli": _right(coded(brotli.compress(JPEG), "br")),
    "brotli_in_gzip": _right(coded(bodies.gzip(brotli.compress(JPEG)), "br, gzip")),
    "no_encoding": _right(coded(JPEG, "none")),
    "redirect": _right(redirects("right")),
    "redirect_with_body": _right(says(head("302 Found", Location="/right", Content_Length=10**12) + b"x")),
    # Encodings.
    "not_gzip": Ill("bad_encoding", coded(JPEG, "gzip")),
    "cut_gzip": Ill("bad_encoding", coded(bodies.gzip(JPEG)[:-20], "gzip")),
    "broken_gzip": Ill("bad_encoding", coded(bodies.broken_gzip(JPEG), "gzip")),
    "cut_brotli": Ill("bad_encoding", coded(brotli.compress(JPEG)[:-5], "br")),
    "not_deflate": Ill("bad_encoding", coded(b"\xff" * 500, "deflate")),
    "three_encodings": Ill("bad_encoding", coded(bodies.gzip(bodies.gzip(bodies.gzip(JPEG))), "gzip, gzip, gzip")),
    "unknown_encoding": Ill("bad_encoding", coded(JPEG, "zstd")),
    # Statuses.
    "no_content": Ill("http_204", says(head("204 No Content"))),
    "partial": Ill("http_206", says(whole(JPEG, "206 Partial Content", Content_Range="bytes 0-9/99"))),
    "not_modified": Ill("http_304", says(head("304 Not Modified"))),
    "upgrade": Ill("http_101", says(head("101 Switching Protocols", Upgrade="websocket", Connection="Upgrade") + JPEG)),
    "not_found": Ill("http_404", says(whole(HTML, "404 Not Found"))),
    "not_found_drip": Ill("http_404", repeats(head("404 Not Found", Content_Length=5_000), b"x", pause_s=0.05)),
    "status_999": Ill("http_999", says(whole(HTML, "999 Request denied"))),
    "error": Ill("http_500", says(whole(HTML, "500 Internal Server Error"))),
    "limited_for_an_hour": Ill("rate_limited", says(whole(b"", "429 Slow", Retry_After="3600"))),
    "away_for_an_hour": Ill("rate_limited", says(whole(b"", "503 Later", Retry_After="3600"))),
    "away_till_2200": Ill("rate_limited", says(whole(b"", "503 Later", Retry_After="Fri, 31 Dec 2200 23:59:59 GMT"))),
    "away_till_whenever": Ill("http_503", says(whole(b"", "503 Later", Retry_After="-\u0080whenever"))),
    "limited_for_ever": Ill("rate_limited", says(whole(b"", "429 Slow"))),
    "limited_once": Ill(
        "rate_limited", in_turn(says(whole(b"", "429 Slow", Retry_After=1)), says(whole())), final="ok"
    ),
    "reset_once": Ill("reset", in_turn(resets(b""), resets(b""), says(whole())), final="ok"),
    "error_once": Ill("http_502", in_turn(says(whole(HTML, "502 Bad Gateway")), says(whole())), final="ok"),
    # Redirects.
    "loop": Ill("too_many_redirects", redirects("/loop")),
    "loop_of_two": Ill("too_many_redirects", redirects("/loop_back")),
    "loop_back": Ill("too_many_redirects", redirects("loop_of_two")),
    "redirects_for_ever": Ill("too_many_redirects", redirects("/redirects_for_ever?{nth}")),
    "no_location": Ill("bad_redirect", says(whole(b"", "302 Found"))),
    "bad_location": Ill("bad_redirect", redirects("http://[half/")),
    "to_password": Ill("bad_redirect", redirects("http://me:secret@{host}:{port}/right")),
    "to_file": Ill("blocked_scheme", redirects("file:///etc/passwd")),
    "to_ftp": Ill("blocked_scheme", redirects("ftp://{host}/a.jpg")),
    "to_data": Ill("blocked_scheme", redirects("data:image/gif;base64,R0lGODlhAQABAAAAACw=")),
    "to_mail_port": Ill("blocked_port", redirects("http://{host}:25/")),
    "to_loopback": Ill("blocked_address", redirects("http://127.0.0.1:{port}/right")),
    "to_hexadecimal": Ill("blocked_address", redirects("http://0x7f000001:{port}/right")),
    "to_one_number": Ill("blocked_address", redirects("http://2130706433:{port}/right")),
    "to_short_form": Ill("blocked_address", redirects("http://127.1:{port}/right")),
    "to_octal": Ill("blocked_address", redirects("http://0177.0.0.01:{port}/right")),
    "to_zero": Ill("blocked_address", redirects("http://0.0.0.0:{port}/right")),
    "to_ipv6_loopback": Ill("blocked_address", redirects("http://[::1]:{port}/right")),
    "to_mapped": Ill("blocked_address", redirects("http://[::ffff:127.0.0.1]:{port}/right")),
    "to_nat64": Ill("blocked_address", redirects("http://[64:ff9b::7f00:1]:{port}/right")),
    "to_6to4": Ill("blocked_address", redirects("http://[2002:7f00:1::]:{port}/right")),
    "to_metadata": Ill("blocked_address", redirects("http://169.254.169.254/latest/meta-data/")),
    "to_private": Ill("blocked_address", redirects("http://10.0.0.1/")),
    "to_shared": Ill("blocked_address", redirects("http://100.64.0.1/")),
    "to_name_of_loopback": Ill("blocked_address", redirects("http://loopback.test:{port}/right")),
    # For the image layer.
    "html": Ill("ok", says(whole(HTML)), HTML, image="not_image"),
    "huge_png": Ill("ok", says(lambda: whole(bodies.huge_png())), image="too_many_pixels"),
    # Met by urls of their own.
    "refused": _elsewhere("connect", "http://{host}:{closed}/"),
    "good_name": _elsewhere("ok", "http://www.fine.test:{port}/right", JPEG),
    "good_certificate": _elsewhere("ok", "https://www.fine.test:{tls_port}/right", JPEG),
    "wrong_certificate": _elsewhere("tls", "https://{host}:{tls_port}/right"),
    "tls_on_plain_port": _elsewhere("tls", "https://{host}:{port}/right"),
    "plain_on_tls_port": _elsewhere("reset", "http://{host}:{tls_port}/right"),
    "no_such_name": _elsewhere("dns", "http://nowhere.test:{port}/right"),
    "name_server_fails": _elsewhere("dns", "http://servfail.test:{port}/right"),
    "name_server_silent": _elsewhere("dns", "http://silent.test:{port}/right"),
    "name_server_lies": _elsewhere("dns", "http://garbage.test:{port}/right"),
    "name_without_address": _elsewhere("dns", "http://empty.test:{port}/right"),
    "name_of_loopback": _elsewhere("blocked_address", "http://loopback.test:{port}/right"),
    "name_of_metadata": _elsewhere("blocked_address", "http://metadata.test:{port}/right"),
    "name_of_mapped_loopback": _elsewhere("blocked_address", "http://mapped.test:{port}/right"),
    "name_of_both": _elsewhere("ok", "http://both.test:{port}/right", JPEG),
    "literal_loopback": _elsewhere("blocked_address", "http://127.0.0.1:{port}/right"),
    "literal_hexadecimal": _elsewhere("blocked_address", "http://0x7f000001:{port}/right"),
    "literal_ipv6_loopback": _elsewhere("blocked_address", "http://[::1]:{port}/right"),
    "mail_port": _elsewhere("blocked_port", "http://{host}:25/"),
    "file_url": _elsewhere("blocked_scheme", "file:///etc/hostname"),
    "ftp_url": _elsewhere("blocked_scheme", "ftp://{host}/a.jpg"),
    "bad_url": _elsewhere("bad_url", "http://exa mple:99999999/"),
}
