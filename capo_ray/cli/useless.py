"""Keys that would change nothing in this composition: given on the command line, they are refused.

Invariant: only what the user wrote is refused; a preset's or default's idle keys are not the user's mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.cli.idle_critic_keys import CRITIC_RULES
from capo_ray.cli.idle_keys import OTHER_RULES
from capo_ray.cli.schema import ConfigError
from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques

RULES = (*CRITIC_RULES, *OTHER_RULES)


def refuse_useless(config: TrainConfig, given: Sequence[str], judges: bool = False) -> None:
    """Raise for the first given key (`critic.num_votes`) or choice (`critic=`) that has no effect.

    `judges`: critics are asked whatever the credit method reads.
    """
    reads_critics = judges or config.credit.asked(Critiques) is not None
    for key in given:
        if not reads_critics and key.startswith(("critic.", "critic=")):
            name = "critic=…" if key == "critic=" else key
            raise ConfigError(
                f"{name} has no effect with credit={config.credit.method}, which reads no critiques; "
                "remove it or choose credit=capo"
            )
        for keys, idle, reason in RULES:
            # `critic.extra.block_size` is set under the key critic.extra.
            if (key in keys or any(key.startswith(f"{k.removesuffix('.')}.") for k in keys)) and idle(config):
                raise ConfigError(f"{key} has no effect {reason}")
