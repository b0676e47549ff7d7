"""Whether a learner can train the models that it would load, told from their files before anything starts."""

from __future__ import annotations

from capo_ray.cli.models import find_model, read_config, read_matrices
from capo_ray.config import Job
from capo_ray.demand import demand, policy_model
from capo_ray.protocols import RunFailed
from capo_ray.sizing import odd_head, odd_layers


def check_architecture(config: Job) -> None:
    """What a learner loads is a model that it can train, as far as its `config.json` tells."""
    for model in [one.model for one in demand(config) if one.is_group and one.model is not None]:
        folder = find_model(model.name, model.shipped)
        if folder is None or not (folder / "config.json").is_file():
            continue
        facts = read_config(folder, model.key)
        if odd := odd_head(facts):
            raise RunFailed(
                f"{model.key}: expected a model whose logits are its head times its last hidden state, as in Qwen, "
                f"Llama or Mistral, got {odd} in {folder}; give another model"
            )
        if config.learner.packing == "shared" and (odd := odd_layers(facts)):
            raise RunFailed(
                f"{model.key}: learner.packing=shared needs layers of plain causal attention, got {odd} in {folder}; "
                f"set learner.packing=padded"
            )


def check_adapters(config: Job) -> None:
    """The layers that get adapters are there, as far as the model's files are."""
    lora, model = config.learner.lora, policy_model(config)
    folder = find_model(model.name, model.shipped) if lora.rank else None
    if folder is not None and any(folder.glob("*.safetensors")):
        from capo_ray.learners.adapters import targets_of

        targets_of(read_matrices(folder, model.key), lora.targets, str(folder))
