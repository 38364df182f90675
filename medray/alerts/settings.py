"""[alert] of a nightly run file: whom to tell, by which way, and of what. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medray.durations import deadline_at, seconds_of

Cause = Literal["failed", "coverage", "drift", "late"]
"""What a night may be told of; beside these there are `missing`, of a night that did not come, and `test`."""


class AlertSettings(BaseModel):
    """Whom a night that needs a person tells, and of what. A good night tells nobody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """A program and its arguments, started without a shell where the night runs; the alert comes on its stdin as JSON."""
    webhook: str | None = None
    """URL that the alert is sent to, as JSON by POST: https, or http to this machine."""
    webhook_file: str | None = None
    """File that holds the URL, in the place of `webhook`: for a URL that is itself a secret."""
    token_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the token that the webhook asks for."""
    token_file: str | None = None
    """File with that token, in the place of `token_env`."""
    header: str = Field(default="Authorization", pattern=r"^[A-Za-z0-9-]+$")
    """Header that carries the token: "Authorization" as "Bearer TOKEN", any other the token alone."""
    insecure_http: bool = False
    """Allow http to another machine: alert and token are then readable on the way."""
    timeout: str = "10s"
    """How long the command, or one try of the webhook, may take."""
    tries: int = Field(default=3, ge=1, le=10)
    """How often the webhook is asked, 1, 4, 16 … seconds apart. The command is started once."""
    on: tuple[Cause, ...] = ("failed", "coverage", "drift", "late")
    """What is told: `failed`, `coverage`, `drift`, `late`."""
    drift: Literal["watch", "alert"] = "alert"
    """Level of drift from which on it is told."""
    least_scored: float = Field(default=0.5, ge=0, le=1)
    """Coverage: smallest share of a bundle's pending entries that are scored; those that are not eligible do not count. 0: any."""
    most_failed: float | None = Field(default=None, ge=0, le=1)
    """Coverage: largest share of them that may fail; default: the run's `max_failed`."""
    most_not_eligible: float = Field(default=1.0, ge=0, le=1)
    """Coverage: largest share of a bundle's pending entries that may be not eligible."""
    least_new: int = Field(default=0, ge=0)
    """Coverage: fewest entries that are new or changed since the night before: fewer, and the archive may no longer be filled."""
    late: str | None = None
    """When the night has to be done: the next "07:00" by this machine's clock, or "9h" after the start; none: any time. It is told
    at that moment, while the night goes on."""
    missing: str = "26h"
    """`medray alert check`: how long ago the last night may have ended."""

    @field_validator("webhook")
    @classmethod
    def _check_webhook(cls, url: str | None) -> str | None:
        if url is not None:
            split_url(url)
        return url

    @field_validator("late")
    @classmethod
    def _check_late(cls, text: str | None) -> str | None:
        if text is not None:
            deadline_at(text, 0.0)
        return text

    @field_validator("timeout", "missing")
    @classmethod
    def _check_duration(cls, text: str) -> str:
        if seconds_of(text) <= 0:
            raise ValueError("a duration of more than 0 is asked for")
        return text

    @model_validator(mode="after")
    def _has_a_way(self) -> AlertSettings:
        if not (self.command or self.has_webhook):
            raise ValueError("an alert needs a command, a webhook or a webhook_file, or nobody is told")
        for one, other in (("webhook", "webhook_file"), ("token_env", "token_file")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} are both given: name one of them")
        if not self.has_webhook and (self.token_env or self.token_file):
            raise ValueError("a token is sent to a webhook, and none is given")
        if self.webhook is not None:
            refuse_open_http(split_url(self.webhook), self.insecure_http)
        return self

    @property
    def has_webhook(self) -> bool:
        return self.webhook is not None or self.webhook_file is not None


def split_url(url: str) -> SplitResult:
    """The parts of a webhook's URL. Raises ValueError, whose message does not repeat it, for one that cannot be asked."""
    try:
        parts = urlsplit(url)
        whole = bool(parts.scheme in ("http", "https") and parts.hostname) and parts.port != 0
    except ValueError:
        parts, whole = SplitResult("", "", "", "", ""), False
    if not whole or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError("a webhook is a URL such as https://alerts.example.org/medray")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a webhook's URL holds no password here: name token_env or token_file, or webhook_file")
    return parts


def refuse_open_http(parts: SplitResult, allowed: bool) -> None:
    """Raises ValueError for plain http to another machine, unless that is allowed."""
    if parts.scheme == "http" and not allowed and not _is_loopback(parts.hostname or ""):
        raise ValueError("plain http goes to this machine only: take https, or allow it with insecure_http = true")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
