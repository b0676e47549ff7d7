"""Model files that are as they were written: compared with the sha256 that `recipe.json` beside them says.

The shipped models and those of `capo-ray sft` have one; of any other model nothing is known.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from capo_ray.protocols import RunFailed

RECIPE = "recipe.json"


def sha256(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_written(model_path: str | Path, most_bytes: int | None = None) -> None:
    """Raise `RunFailed` for a weight file of a model directory with another sha256 than its recipe says.

    Files of more than `most_bytes` together are not read: a look before a run takes no longer for a large model.
    """
    recipe = Path(model_path) / RECIPE
    if not recipe.is_file():
        return
    try:
        sums = {str(name): str(told) for name, told in dict(json.loads(recipe.read_text()).get("sha256", {})).items()}
        files = [recipe.parent / name for name in sums]
        # A recipe comes with its model, from anywhere: it may name /dev/zero, which never ends.
        if strange := [file for file in files if file.parent != recipe.parent or not file.is_file()]:
            raise ValueError(f"{strange[0].name}, which is no file there")
        if most_bytes is not None and sum(file.stat().st_size for file in files) > most_bytes:
            return
        found = {file.name: sha256(file) for file in files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RunFailed(
            f"expected {recipe} to name the weight files beside it, got {error}; copy the directory again"
        ) from error
    for name, expected in sums.items():
        if found[name] != expected:
            raise RunFailed(
                f"expected {recipe.parent / name} to have the sha256 {expected[:12]} that {RECIPE} beside it says, got "
                f"{found[name][:12]}: it is damaged; install or copy it again, or remove {RECIPE} if it was changed "
                f"on purpose"
            )
