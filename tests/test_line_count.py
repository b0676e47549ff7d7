"""The count of lines done, on a clock made by hand."""

import io
from types import SimpleNamespace

import pytest

from capo_ray.cli import line_count
from capo_ray.cli.line_count import LineCount


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("watched", "seen"), [(True, "\r2 lines judged, 1/s \r4 lines judged, 1/s \n"), (False, "")])
def test_who_waits_is_told_twice_a_second_after_two(watched: bool, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.9, 2.1, 2.5, 2.9])
    monkeypatch.setattr(line_count, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("sys.stderr", Screen())
    monkeypatch.setattr("sys.stdout", io.StringIO() if watched else Screen())
    count = LineCount("judged")
    for _ in range(4):
        count.count()
    count.end()
    assert line_count.sys.stderr.getvalue() == seen  # type: ignore[attr-defined]
