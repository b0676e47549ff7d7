"""A model behind an OpenAI-compatible API, whoever asks it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from capo_ray.config.base import LocalPath, Section
from capo_ray.config.job import Positive

START_S, FLOOR_TOKENS_PER_S = 30.0, 10.0
"""An endpoint's time to begin an answer, and the slowest rate of one answer that is not taken for a hang."""


class ApiConfig(Section):
    """Where the model is served and how it is asked. The key itself is never part of a config."""

    section: ClassVar[str] = "endpoint"
    """Where it stands, for its sentences."""

    base_url: str = ""
    """Such as `https://host/v1`; the path of what is asked is added."""
    model: str = ""
    """The model's name there."""
    key_file: LocalPath = ""
    """File that holds the API key (a mounted secret)."""
    key_env: str = ""
    """Environment variable that holds the API key, where there is no file."""
    request_deadline_s: float = Field(0.0, ge=0)
    """For one try of one request; 0: 30 s and a tenth of a second for each token that an answer may have. A request
    that is late is not sent again to the same server."""
    max_retries: int = Field(3, ge=0)
    """Tries of a request beside the first."""
    retry_wait_s: float = Field(0.5, ge=0)
    """Wait before the first retry; doubles with each, with jitter."""
    hedge_after_s: float = Field(0.0, ge=0)
    """Send a second copy of a request that has not answered after this long; 0: never."""
    max_in_flight: Positive = 32
    """Requests under way at once."""
    breaker_failures: Positive = 8
    """Failures in a row after which nothing is sent for `breaker_open_s` (or what the server's Retry-After asks)."""
    breaker_open_s: float = Field(15.0, ge=0)

    def request_limit_s(self, max_tokens: int) -> float:
        """The seconds for one try of a request for answers of at most `max_tokens`."""
        return self.request_deadline_s or START_S + max_tokens / FLOOR_TOKENS_PER_S
