"""Settings of every request to the web: who asks, how much is taken, how long is waited."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from pydantic import Field, field_validator

from infra.recipe import Config, tuning

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME_SERVER = re.compile(r"(\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")


class FetchConfig(Config):
    """Every setting of a `Fetcher`. What is waited and how much runs at once is no part of the fingerprint."""

    user_agent: str = Field(
        "pairmill/0.1 (+https://example.org/pairmill; contact: set --user-agent)",
        description="Name sent with every request. Name yourself and a contact, so that a site can reach you.",
    )
    allow_network: tuple[str, ...] = Field(
        (),
        description="Networks (CIDR) that may be fetched from although they are loopback, private or link-local; "
        "may be given several times. None by default.",
    )
    max_bytes: int = Field(32 << 20, gt=0, description="Largest body, as it comes and decompressed.")
    max_header_bytes: int = Field(64 << 10, gt=0, description="Largest head of an answer, status line to last header.")
    max_redirects: int = Field(5, ge=0, description="Redirects followed before giving up.")
    timeout_s: float = tuning(
        10.0, "Seconds for one attempt, as a whole: name, connection, TLS, headers, body and redirects.", gt=0
    )
    total_timeout_s: float = tuning(
        60.0,
        "Seconds for all attempts and the waits that a server causes (back-off, Retry-After). Waiting for our own "
        "turn (connections, per-host, delay-s) is not counted.",
        gt=0,
    )
    attempts: int = tuning(
        3,
        "Times that a url is tried, where its failure may pass: resets, name server trouble, 429, 5xx; timeouts, "
        "which have cost their deadline, twice at most.",
        gt=0,
    )
    backoff_s: float = tuning(0.5, "Pause before the second attempt; doubles with each further one.", ge=0)
    connections: int = tuning(512, "Connections of one worker open at the same time.", gt=0)
    per_host: int = tuning(8, "Requests of one worker to one host at the same time.", gt=0)
    delay_s: float = tuning(0.0, "Pause between the starts of a worker's requests to one host, in seconds.", ge=0)
    max_bytes_in_flight: int = tuning(
        512 << 20, "Bytes of all bodies that a worker holds at the same time; further reading waits.", gt=0
    )
    dns: tuple[str, ...] = tuning(
        (), "Name servers, as address or address:port; may be given several times. Unset: the system's."
    )
    dns_timeout_s: float = tuning(5.0, "Seconds for the lookup of one name.", gt=0)
    dns_concurrency: int = tuning(256, "Names that one worker looks up at the same time.", gt=0)
    ca_file: str | None = tuning(None, "PEM file of further certificate authorities to trust, for private ones.")

    @property
    def agent_token(self) -> str:
        """The product that robots.txt and X-Robots-Tag may address, in lower case: `pairmill`."""
        _, compatible, product = self.user_agent.partition("compatible;")
        found = _TOKEN.match(product.strip() if compatible else self.user_agent)
        return found[0].lower() if found else ""

    @field_validator("user_agent")
    @classmethod
    def _is_a_product(cls, value: str) -> str:
        if not _TOKEN.match(value) or not value.isascii() or not value.isprintable():
            raise ValueError("write it as name/version (contact), in printable ASCII")
        return value

    @field_validator("allow_network")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"{text} is not a network; write it as 127.0.0.0/8 or ::1/128") from None
        return value

    @field_validator("dns")
    @classmethod
    def _are_name_servers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not _NAME_SERVER.fullmatch(text):
                raise ValueError(
                    f"{text} is not a name server; write it as 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53"
                )
        return value

    @field_validator("ca_file")
    @classmethod
    def _is_there(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_file():
            raise ValueError("no such file; give a PEM file of certificates")
        return value
