"""Models behind OpenAI-compatible APIs: the one way to ask them, whoever asks.

    body -> Posts -> POST {base_url}{path}   retries in a budget, hedges, a breaker; the key blotted out of what is said

Critics ask `/chat/completions` (`critics.endpoint`), evaluations `/completions` (`engines.served`).
"""

from capo_ray.served.posts import CONNECT_S, Posts
from capo_ray.served.refusals import RequestFailed

__all__ = ["CONNECT_S", "Posts", "RequestFailed"]
