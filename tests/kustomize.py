"""What `kubectl kustomize` makes of a directory, for the little that deploy/ uses: one RayJob and JSON patches of it.

Resources beside the first are as they stand in their files: `beside`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def render(folder: Path) -> dict[str, Any]:
    """The first resource of a kustomization with its patches applied."""
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    source = (folder / settings["resources"][0]).resolve()
    if source.is_dir():
        job = render(source)
    else:
        # Written out and read again, so that what YAML anchors share becomes separate, as in the cluster's JSON.
        job = _apart(yaml.safe_load(source.read_text(encoding="utf-8")))
    for patch in settings.get("patches", []):
        assert patch["target"] == {"kind": job["kind"], "name": job["metadata"]["name"]}
        for change in yaml.safe_load(patch["patch"]):
            _apply(job, **change)
    return job


def beside(folder: Path) -> list[dict[str, Any]]:
    """The other resources of a kustomization."""
    names = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"][1:]
    return [one for name in names for one in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]


def _apart(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


def _apply(document: Any, op: str, path: str, value: Any = None) -> None:
    """One operation of RFC 6902; `replace` asks for something to replace, `remove` for an element of a list."""
    *way, last = [word.replace("~1", "/").replace("~0", "~") for word in path.split("/")[1:]]
    for word in way:
        document = document[int(word)] if isinstance(document, list) else document[word]
    if op == "remove":
        del document[int(last)]
        return
    if isinstance(document, list):
        assert op == "add" and last == "-", (op, path)
        document.append(value)
        return
    assert op == "add" or (op == "replace" and last in document), (op, path)
    document[last] = value
