"""The functions that packages beside this one bring are looked for before anything starts."""

from __future__ import annotations

from capo_ray.config import TrainConfig
from capo_ray.config.base import OURS, RuledSection, RuleError
from capo_ray.config.families import VERIFIERS, offered_functions
from capo_ray.config.sections import VERIFIER_KINDS
from capo_ray.evidence import source_of
from capo_ray.protocols import RunFailed


def check_rules(config: TrainConfig) -> None:
    """Raise `RunFailed` for a credit method, a segmenter, an environment or evidence whose code is not there.

    And for a verifier of another package that has the name of ours.
    """
    chosen: dict[str, RuledSection] = {
        f"credit={config.credit.method}": config.credit,
        f"steps={config.steps.segmenter}": config.steps,
        f"environment={config.environment.kind}": config.environment,
    }
    for name, section in chosen.items():
        if section.rule and not section.rule.startswith(OURS):
            try:
                section.find_rule()
            except RuleError as error:
                raise RunFailed(f"{name}: {error}; mend or uninstall its package") from error
    kind = config.verifier.kind
    if kind in VERIFIER_KINDS and (theirs := offered_functions(VERIFIERS).get(kind)):
        raise RunFailed(
            f"verifier.kind={kind} is ours, but {theirs} has that name too; rename it, or uninstall its package"
        )
    for asked in config.credit.evidence():
        if not asked.source.startswith(OURS):
            source_of(type(asked))
