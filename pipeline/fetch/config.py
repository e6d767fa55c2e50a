"""How we ask the web: who we are, where we may connect, and every bound on time, bytes and hops."""

from __future__ import annotations

import ipaddress
import re

from pydantic import Field, field_validator

from infra.recipe import Config, tuning

AGENT = "pairmill/0.1 (+https://pairmill.invalid/bot; name yourself and a contact with --user-agent)"


class FetchConfig(Config):
    """Settings of one fetcher. All limits hold for each worker, unless the description says otherwise."""

    user_agent: str = Field(AGENT, min_length=1, description="Who asks: a name and a contact.")
    allow_network: tuple[str, ...] = Field(
        (), description="Networks (CIDR) to connect to although they are loopback, private or link-local."
    )
    max_redirects: int = Field(5, ge=0, description="Redirects followed for one url.")
    max_bytes: int = Field(32 << 20, gt=0, description="Largest body, content encodings undone.")
    max_header_bytes: int = Field(16 << 10, gt=0, description="Largest single header; at most 128 of them.")
    dns: tuple[str, ...] = tuning((), "Name servers to ask, host:port; unset: the system's.")
    timeout_s: float = tuning(10.0, "Deadline of one attempt: name, connection, TLS, headers and body.", gt=0)
    total_timeout_s: float = tuning(60.0, "Deadline over all attempts for one url, waits between them included.", gt=0)
    attempts: int = tuning(3, "Attempts for one url when the failure may pass.", ge=1)
    backoff_s: float = tuning(0.5, "Wait before the second attempt; doubled before each further one.", ge=0)
    connections: int = tuning(128, "Requests at the same time.", gt=0)
    per_host: int = tuning(8, "Requests to one host at the same time.", gt=0)
    delay_s: float = tuning(0.0, "Pause between requests to one host, in seconds.", ge=0)
    dns_timeout_s: float = tuning(5.0, "Deadline for one name.", gt=0)
    dns_concurrency: int = tuning(256, "Names asked for at the same time.", gt=0)
    ca_file: str | None = tuning(None, "Further certificate authorities to trust, a PEM file.")

    @field_validator("allow_network")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"{text} is no network; write it as 127.0.0.0/8 or ::1/128") from None
        return value

    @property
    def agent_token(self) -> str:
        """The agent's product token, lower-cased: what robots.txt and X-Robots-Tag call us."""
        return re.split(r"[/\s(]", self.user_agent.strip(), maxsplit=1)[0].lower()
