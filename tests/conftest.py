"""Settings of all tests."""

from hypothesis import settings

# A property may take long on a machine that is busy with something else: only what it says counts.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")
