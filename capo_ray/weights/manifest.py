"""The manifest of one version: JSON text naming every tensor, its place and checksum, and the canary.

Invariant: `read_manifest(manifest.to_json()) == manifest`, and a text changed in any character is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

FORMAT = 1


class WeightsRefused(RuntimeError):
    """Weights that are not what their manifest or the model says; serve nothing until good ones arrive."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A token sequence and the learner's own logprobs (nats, temperature 1) of its last `len(logprobs)` tokens.

    An engine holds the version only if it scores each of them within `tolerance` nats.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tolerance: float

    def __post_init__(self) -> None:
        if not 0 < len(self.logprobs) < len(self.token_ids):
            raise ValueError(
                f"a canary needs 1 to {len(self.token_ids) - 1} logprobs for its {len(self.token_ids)} tokens "
                f"(got {len(self.logprobs)}): the first token has no context to be scored in"
            )
        if not all(math.isfinite(x) for x in self.logprobs):
            raise ValueError("a canary's logprobs must be finite; a learner with other ones must not publish")
        if not self.tolerance > 0:
            raise ValueError(f"a canary's tolerance must be > 0 nats (got {self.tolerance})")

    @property
    def start(self) -> int:
        """The index of the first scored token."""
        return len(self.token_ids) - len(self.logprobs)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `num_bytes` bytes of the payload from `offset`, row-major, dtype as torch names it (`float32`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors of a version in payload order."""

    version: int
    payload_bytes: int
    tensors: tuple[TensorEntry, ...]
    canary: Canary | None

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of everything else in the manifest: two sides with the same one hold the same weights."""
        return hashlib.sha256(_canonical(self._body()).encode()).hexdigest()

    def to_json(self) -> str:
        """The text that travels."""
        return json.dumps({**self._body(), "fingerprint": self.fingerprint}, separators=(",", ":"))

    def _body(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "version": self.version,
            "payload_bytes": self.payload_bytes,
            "tensors": [[t.name, t.dtype, list(t.shape), t.offset, t.num_bytes, t.crc32] for t in self.tensors],
            "canary": None if self.canary is None else asdict(self.canary),
        }


def read_manifest(text: str) -> Manifest:
    """The manifest in `text`; raises `WeightsRefused` if it is damaged or of another format."""
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise WeightsRefused(
                f"weights manifest has format {data['format']!r}, expected {FORMAT}: update both sides"
            )
        manifest = Manifest(
            version=int(data["version"]),
            payload_bytes=int(data["payload_bytes"]),
            tensors=tuple(
                TensorEntry(str(name), str(dtype), tuple(int(d) for d in shape), int(offset), int(size), int(crc))
                for name, dtype, shape, offset, size, crc in data["tensors"]
            ),
            canary=_read_canary(data["canary"]),
        )
        claimed = data["fingerprint"]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise WeightsRefused(f"weights manifest cannot be read ({error!r}); publish the version again") from error
    if claimed != manifest.fingerprint:
        raise WeightsRefused("weights manifest does not match its own fingerprint; publish the version again")
    return manifest


def _read_canary(data: Mapping[str, object] | None) -> Canary | None:
    """The canary in its JSON form, if there is one."""
    if data is None:
        return None
    token_ids, logprobs, tolerance = data["token_ids"], data["logprobs"], data["tolerance"]
    if not isinstance(token_ids, list) or not isinstance(logprobs, list) or not isinstance(tolerance, float | int):
        raise TypeError("canary fields have the wrong types")
    return Canary(tuple(int(i) for i in token_ids), tuple(float(x) for x in logprobs), float(tolerance))


def _canonical(body: Mapping[str, object]) -> str:
    return json.dumps(body, separators=(",", ":"), sort_keys=True)
