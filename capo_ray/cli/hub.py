"""Who is spoken to first when a model is fetched: the hub itself, or the proxy that the environment names for it."""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

HUB = "https://huggingface.co"


def door_to_hub() -> tuple[str, str, str]:
    """An address, whose it is, and what to do where nobody answers there.

    Chosen as huggingface_hub does: the proxy of the hub's scheme, else of all, unless NO_PROXY names the hub's host.
    """
    hub = os.environ.get("HF_ENDPOINT") or HUB
    parts, proxies = urlsplit(hub), getproxies()
    name = next((name for name in (parts.scheme, "all") if proxies.get(name)), "")
    if not name or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return hub, "its hub", "check the network, or give a model directory"
    proxy = proxies[name]
    return (
        proxy if "://" in proxy else f"http://{proxy}",
        f"the proxy to its hub ({name.upper()}_PROXY)",
        f"check the proxy, add {parts.hostname} to NO_PROXY, or give a model directory",
    )
