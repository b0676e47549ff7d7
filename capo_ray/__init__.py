"""capo-ray: post-train reasoning LLMs with step-level credit from an LLM critic, on Ray.

`import capo_ray` imports nothing else: what `capo_ray.api` offers comes with the first use of its name.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "CreditedGroup",
    "CreditedResponse",
    "Evaluation",
    "Run",
    "RunFailed",
    "compose",
    "credit",
    "critique",
    "evaluate",
    "spell",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """What the library offers under a name; `credit` is also a room, which can be called as the function."""
    if name not in __all__:
        raise AttributeError(f"module 'capo_ray' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("capo_ray.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
