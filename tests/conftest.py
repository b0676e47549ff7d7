"""Settings of all tests."""

import pytest
from hypothesis import settings

# A property may take long on a machine that is busy with something else: only what it says counts.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")


@pytest.fixture(autouse=True)
def hub_as_a_user_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in this process switches the hub off for as long as the process lives; later tests are other users."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
