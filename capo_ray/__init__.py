"""capo-ray: post-train reasoning LLMs with step-level credit from an LLM critic, on Ray."""

__version__ = "0.1.0"
