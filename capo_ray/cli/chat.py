"""A model's chat template rendered once, in a child with limits of time and memory: a template is a program.

Invariant: a template that does not end is refused here, before a driver or worker renders it without a limit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from capo_ray.protocols import RunFailed

CPU_S = 3  # a template of any published model takes a hundredth of it
WALL_S = 60.0
MEMORY_BYTES = 1 << 30

# As transformers renders: the same sandbox, flags and functions. Its own module would take seconds to import.
_CHILD = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
from datetime import datetime
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
asked = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (asked["cpu_s"], asked["cpu_s"]))
class Refused(TemplateError):
    pass
def refuse(message):
    raise Refused(message)
room = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
room.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
room.globals["raise_exception"] = refuse
room.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
text, said = None, None
try:
    text = room.from_string(asked["template"]).render(**asked["names"])
except MemoryError:
    raise
except Refused as error:
    said = str(error) or "it gives no reason"
except Exception:
    pass
print(json.dumps([text, said]))
"""


def render_chat(
    folder: Path, section: str, system: str, user: str, more: Mapping[str, object] = MappingProxyType({})
) -> str | None:
    """The prompt of a system and a user turn; None without a template, or where it is not plain Jinja.

    Raises `RunFailed`, naming the key of `section`, where rendering does not end within its limits, or where the
    template itself refuses the turns.
    """
    template, names = _read(folder)
    if template is None:
        return None
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    unread = [name for name in more if not re.search(rf"\b{re.escape(name)}\b", template)]
    if unread:
        raise RunFailed(
            f"{section}.chat_template_args.{unread[0]} has no effect: the chat template of {folder} does not read it; "
            "remove it, or see the template for its names"
        )
    names |= {**more, "messages": messages, "add_generation_prompt": True}
    asked = json.dumps({"template": template, "names": names, "cpu_s": CPU_S})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=asked,
            capture_output=True,
            text=True,
            timeout=WALL_S,
            check=False,
        )
        ended = done.returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    if not ended:
        raise RunFailed(
            f"{section}.chat_template=true: expected the chat template of {folder} to end within {CPU_S} s and "
            f"{MEMORY_BYTES >> 20} MiB, got no end; mend the template, or set {section}.chat_template=false"
        )
    rendered, said = json.loads(done.stdout)
    if said is not None:
        key, cure = (
            (f"{section}.system_prompt", "leave it empty, or set") if system else (f"{section}.chat_template", "set")
        )
        raise RunFailed(
            f"{key}: the chat template of {folder} refuses {'a system turn' if system else 'a user turn'} "
            f"({said[:200]}); {cure} {section}.chat_template=false"
        )
    return None if rendered is None else str(rendered)


def has_chat_template(folder: Path) -> bool:
    """Whether a model directory has a chat template."""
    return _read(folder)[0] is not None


def _read(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """The template, and the special tokens by name."""
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            tree = None
        config = tree if isinstance(tree, dict) else {}
    named = {name: config.get(f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    tokens = {f"{name}_token": t.get("content", "") if isinstance(t, dict) else t or "" for name, t in named.items()}
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8"), tokens
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        names = [str(t.get("name")) for t in template]
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
        if template is None:
            raise RunFailed(
                f"expected a default among the chat templates of {folder}, got {', '.join(names)}; rename the one to "
                "use in tokenizer_config.json, or set chat_template=false"
            )
    return (template if isinstance(template, str) else None), tokens
