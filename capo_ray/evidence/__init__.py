"""Evidence: what a credit method asked to know of each response, gathered by one source per kind.

    credit.evidence() -> requests -> a source each:  room_tokens -> gather (all at once) -> note
                                  -> deadline_s, before a run;  read, where `capo-ray credit` has lines and no run

A kind is a request class (`config.credit.requests`), which names its source, and that source: one file here, or
in a package of one's own. Numbers go to a field of `types.Evidence`, or to its `more` under the kind's name.
Invariant: exactly what was asked for is gathered, of members with a valid verdict only.
"""

from capo_ray.evidence.gathering import build_sources, deadline_s, gather, read_evidence, source_of
from capo_ray.evidence.lines import FieldError, ResponseLine, read_numbers, refuse, show
from capo_ray.evidence.source import Doors, EvidenceSource

__all__ = [
    "Doors",
    "EvidenceSource",
    "FieldError",
    "ResponseLine",
    "build_sources",
    "deadline_s",
    "gather",
    "read_evidence",
    "read_numbers",
    "refuse",
    "show",
    "source_of",
]
