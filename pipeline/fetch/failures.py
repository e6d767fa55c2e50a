"""What aiohttp raises, told as one of our reasons."""

from __future__ import annotations

import os
import ssl

import aiohttp
from aiohttp.http_exceptions import ContentLengthError

from pipeline.fetch.addresses import BlockedAddressError
from pipeline.fetch.errors import FetchError
from pipeline.fetch.names import NameLookupError
from pipeline.fetch.wire import BodyBrokenError, BodyTooLargeError, BoundedHandler, HeadTooLargeError


def explain_failure(error: Exception, handler: BoundedHandler | None) -> FetchError:
    """The reason for a failed request. handler: its connection, where the head of an answer had come.

    Details are stored with the row: they hold no address of several, no count and no text cut by packets.
    """
    match error:
        case HeadTooLargeError():
            return FetchError("headers_too_large", str(error))
        case BodyTooLargeError():
            return FetchError("too_large", str(error))
        case BodyBrokenError():
            return FetchError("bad_response", _first_line(str(error)))
        case aiohttp.ClientPayloadError():
            return _broken_off(error, handler)
        case aiohttp.ClientConnectorCertificateError():
            return _no_tls(error.certificate_error)
        case aiohttp.ClientSSLError():
            return _no_tls(error.os_error)
        case aiohttp.ClientConnectorError():
            return _not_connected(error.os_error)
        case aiohttp.InvalidURL():
            return FetchError("bad_url", str(error))
        case aiohttp.ServerDisconnectedError():
            return FetchError("reset", "closed without an answer")
        case ssl.SSLError():
            return _no_tls(error)
        case OSError():
            return FetchError("reset", os.strerror(error.errno) if error.errno else "broken off")
        case aiohttp.ClientResponseError():
            return FetchError("bad_response", _first_line(error.message))
        case _:
            return FetchError("bad_response", type(error).__name__)


def _broken_off(error: aiohttp.ClientPayloadError, handler: BoundedHandler | None) -> FetchError:
    is_short = isinstance(error.__cause__, ContentLengthError)
    if is_short and (handler is None or handler.lost_by is None):
        return FetchError("wrong_length", "closed before the announced length")
    return FetchError("reset", "connection broken off in mid-body")


def _not_connected(error: OSError) -> FetchError:
    match error:
        case NameLookupError():
            return FetchError("dns", str(error), may_retry=not error.is_final, wait_s=error.wait_s)
        case BlockedAddressError():
            return FetchError("blocked_address", "loopback, private, link-local or reserved")
        case TimeoutError():
            return FetchError("timeout", "no connection in time")
        case ssl.SSLError():
            return _no_tls(error)
        case ConnectionResetError() | BrokenPipeError():
            return FetchError("reset", "broken off in the handshake")
        case _:
            return FetchError("connect", os.strerror(error.errno) if error.errno else "no address could be reached")


def _no_tls(error: Exception) -> FetchError:
    # Without the line of OpenSSL's source, which differs from build to build.
    return FetchError("tls", getattr(error, "verify_message", None) or getattr(error, "reason", None) or "handshake")


def _first_line(text: str) -> str:
    # Behind it the parser quotes what it was reading.
    return text.strip().partition("\n")[0].rstrip(":")
