"""Models of transformers as this package trains them: dropout off, in train mode, their files mapped and not copied.

transformers maps safetensors: weights that keep the file's dtype lie in the page cache, once per host, whatever the
number of ranks. Cast weights are copies of a rank's own. Hence `cast=False`, for who takes the weights one by one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capo_ray.protocols import RunFailed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_pretrained(
    kind: Any, what: str, path: str, dtype: str, *, gradient_checkpointing: bool = False, cast: bool = True
) -> Any:
    """The model at `path` as transformers' auto class `kind` makes it, on the CPU.

    `cast=False` leaves the weights in the dtype of their files, where that is one. Raises RunFailed, which says `what`
    it must be, when it cannot be read.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path)
        for key in [name for name in config.to_dict() if "dropout" in name or name.endswith("pdrop")]:
            setattr(config, key, 0.0)  # the ratio compares two passes over the same tokens: they must be equal
        stored = None if cast else stored_dtype(path)
        model = kind.from_pretrained(path, config=config, dtype=stored or DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise RunFailed(f"{what} that transformers can read (got {path!r}): {error}") from error
    model.config.dtype = DTYPES[dtype]  # also of weights that are cast later: an export names the dtype of its files
    # transformers leaves a loaded model in eval mode, and checkpoints activations in train mode alone.
    model.train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Moves a module to `device`, its weights cast there one by one; buffers keep theirs (rotary angles: fp32).

    Weights that a file holds so already stay mapped on a CPU: no host has a copy of them for each rank.
    """
    for param in module.parameters():
        param.data = param.data.to(device).to(dtype)
    module.to(device)


def stored_dtype(path: str) -> torch.dtype | None:
    """The dtype of all floating weights in a model's safetensors files; None where they differ or there are none."""
    from transformers.utils import cached_file

    def find(name: str) -> str | None:
        found: str | None = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        return found

    whole, index = find("model.safetensors"), None
    if whole is None and (index := find("model.safetensors.index.json")) is None:
        return None
    names = ["model.safetensors"] if index is None else set(json.loads(Path(index).read_text())["weight_map"].values())
    kinds = {kind for name in names if (file := find(name)) is not None for kind in _kinds_in(Path(file))}
    return _STORED.get(kinds.pop()) if len(kinds) == 1 else None


def _kinds_in(file: Path) -> set[str]:
    """The names of the floating dtypes in a safetensors file, from its header alone."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__" and "F" in entry["dtype"]}
