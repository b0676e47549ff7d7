"""The manifest of one version: JSON text naming every tensor, its place and checksum, and the canary.

Invariant: `read_manifest(manifest.to_json()) == manifest`, and a text changed in any character is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from capo_ray.weights.canary import Apart, Canary, WeightsRefused

FORMAT = 6
UNSEALED = -1
"""In place of a checksum that was not taken yet; no bytes have it."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `num_bytes` bytes of the payload from `offset`, row-major, dtype as torch names it (`float32`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Onto:
    """What adapters that are sent alone are added to: W + scale * B A, W of the weights of this fingerprint."""

    base: str
    scale: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors of a version in payload order; `onto`: where they are adapters alone."""

    version: int
    payload_bytes: int
    tensors: tuple[TensorEntry, ...]
    canary: Canary | None
    onto: Onto | None = None

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of everything else in the manifest: two sides with the same one hold the same weights.

        It goes from sender to receiver on a way of its own (`WeightsHandle.fingerprint`), so that an older version
        under a new number, which is whole in itself, does not pass for the new one.
        """
        return hashlib.sha256(_canonical(self._body()).encode()).hexdigest()

    @property
    def places(self) -> tuple[TensorEntry, ...]:
        """What is sent and where it lies, as it was known before the seal."""
        return tuple(replace(entry, checksum=UNSEALED) for entry in self.tensors)

    def to_json(self) -> str:
        """The text that travels."""
        return json.dumps({**self._body(), "fingerprint": self.fingerprint}, separators=(",", ":"))

    def _body(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "version": self.version,
            "payload_bytes": self.payload_bytes,
            "tensors": [[t.name, t.dtype, list(t.shape), t.offset, t.num_bytes, t.checksum] for t in self.tensors],
            "canary": None if self.canary is None else asdict(self.canary),
            "onto": None if self.onto is None else asdict(self.onto),
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
                TensorEntry(str(name), str(dtype), tuple(int(d) for d in shape), int(offset), int(size), int(seen))
                for name, dtype, shape, offset, size, seen in data["tensors"]
            ),
            canary=_read_canary(data["canary"]),
            onto=None if data["onto"] is None else Onto(str(data["onto"]["base"]), float(data["onto"]["scale"])),
        )
        claimed = data["fingerprint"]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise WeightsRefused(f"weights manifest cannot be read ({error!r}); publish the version again") from error
    if claimed != manifest.fingerprint:
        raise WeightsRefused("weights manifest does not match its own fingerprint; publish the version again")
    return manifest


def _read_canary(data: Mapping[str, Any] | None) -> Canary | None:
    """The canary in its JSON form, if there is one."""
    if data is None:
        return None
    token_ids, logprobs, allowed = data["token_ids"], data["logprobs"], data["allowed"]
    if not isinstance(token_ids, list) or not isinstance(logprobs, list) or not isinstance(allowed, dict):
        raise TypeError("canary fields have the wrong types")
    limits = Apart(float(allowed["mean"]), float(allowed["worst"]))
    return Canary(tuple(int(i) for i in token_ids), tuple(float(x) for x in logprobs), limits)


def _canonical(body: Mapping[str, object]) -> str:
    return json.dumps(body, separators=(",", ":"), sort_keys=True)
