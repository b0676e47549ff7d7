"""From the names of a model in memory to those of its files, which engines load.

transformers keeps the experts of a layer fused (`mlp.experts.gate_up_proj` [E, 2I, H]); files, and vLLM's loader, name
each expert's matrices. The conversion back is transformers' own, as `save_pretrained` does it, a portion at a time.
"""

from __future__ import annotations

from typing import Any

import torch

from capo_ray.protocols import RunFailed
from capo_ray.weights import MappedFiles
from capo_ray.written import require_written

PREFIX = "model."  # `Policy` holds the model under this name


class FileNames:
    """The conversion of one model; plain names, without a conversion, where its files are named as it is."""

    def __init__(self, model: Any) -> None:
        self._model = _Read(model)

    def to_files(self, portion: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same weights under their names in files; views of what was given where the layout allows."""
        named = {name.removeprefix(PREFIX): tensor for name, tensor in portion.items()}
        if not self._model._weight_conversions:
            return named
        from transformers.core_model_loading import revert_weight_conversion

        return dict(revert_weight_conversion(self._model, named))


def require_files_weights(portion: dict[str, torch.Tensor], files: Files, path: str) -> None:
    """Raises RunFailed unless a portion of a model just loaded is, name by name and bit by bit, what its files hold.

    What is published later goes under the same names: a tensor that stood under another's would train an engine that
    is not the learner's policy, and where two are alike no canary would tell.
    """
    for name, tensor in portion.items():
        stored = files.tensor(name)
        if stored is None:
            raise RunFailed(
                f"model.path={path} must name its tensors as transformers writes them (the learner would publish "
                f"{name}, which its *.safetensors files do not hold); load it with transformers and save it anew"
            )
        if stored.shape != tensor.shape or not torch.equal(stored.to(tensor.dtype), tensor.to("cpu")):
            raise RunFailed(
                f"tensor {name} in memory must be the one in the files of model.path={path} (got other values or shape "
                f"{list(tensor.shape)}, not {list(stored.shape)}); load the model with transformers and save it anew"
            )


class Files(MappedFiles):
    """The tensors of a model's safetensors files, which are as they were written."""

    def __init__(self, path: str) -> None:
        require_written(path)
        super().__init__(path)


class _Read:
    """What a conversion reads of a model; without the modules, so that nothing here keeps them."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.base_model_prefix = model.base_model_prefix
        self._weight_conversions = getattr(model, "_weight_conversions", None)
