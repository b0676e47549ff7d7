"""Which training problems come again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from capo_ray.config.base import Idle, Section

Share = Annotated[float, Field(ge=0, le=1)]


class CurriculumConfig(Section):
    """Problems met before are drawn again by their running pass rate; after ACPO (2510.08899), the rule being our own.

    Usable with every credit method and all data.
    """

    kind: Literal["none", "pass_rate"] = "none"
    fresh_frac: float = Field(0.5, gt=0, le=1)
    """Share of the draws that take the next problem of the data; the others repeat one of the band, if there is any."""
    low: Share = 0.1
    """Lower end of the band of pass rates from which problems are repeated, hard ones more often (weight 1 - rate)."""
    high: Share = 0.9
    """Upper end of that band."""
    late_from: Share = 1.0
    """Share of the run after which the late band takes its place, all its problems alike; 1: never."""
    late_low: Share = 0.3
    """Lower end of the late band."""
    late_high: Share = 0.8
    """Upper end of the late band."""
    newest_weight: float = Field(0.5, gt=0, le=1)
    """Weight of the newest group in a problem's running pass rate."""
    memory: int = Field(1024, ge=1)
    """Problems remembered; the one whose answers are the oldest is forgotten first."""

    @model_validator(mode="after")
    def _bands_are_not_empty(self) -> CurriculumConfig:
        for low, high in (("low", "high"), ("late_low", "late_high")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(
                    f"data.curriculum.{low} must be < data.curriculum.{high} "
                    f"(got {getattr(self, low)} >= {getattr(self, high)})"
                )
        return self

    def idle(self) -> tuple[Idle, ...]:
        """All but `kind` without a curriculum, and the late band that is never reached."""
        return (
            Idle(
                tuple(name for name in type(self).model_fields if name != "kind"),
                self.kind == "none",
                "with data.curriculum.kind=none; add data.curriculum.kind=pass_rate",
            ),
            Idle(
                ("late_low", "late_high"),
                self.late_from == 1,
                "with data.curriculum.late_from=1, which never comes to the late band; lower it, or remove this",
            ),
        )
