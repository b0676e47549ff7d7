"""What a setting names is looked at before anything starts: rubric, endpoint, templates, packages, verifier, data.

Invariant: every check raises `RunFailed` with one sentence and takes a second or two; foreign code and templates run
in a child with a limit of its own, never here.
"""

from __future__ import annotations

import os
import pkgutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from capo_ray.cli.chat import has_chat_template, render_chat
from capo_ray.cli.hub import door_to_hub
from capo_ray.cli.models import Role, find_model
from capo_ray.cli.plan_data import FIRST_ROWS, first_problems
from capo_ray.config import Job, TrainConfig
from capo_ray.config.credit import Critiques
from capo_ray.config.shipped import SHIPPED
from capo_ray.demand import models
from capo_ray.place.trust import trust_solutions
from capo_ray.problems import build_problems, reads_hub
from capo_ray.problems.chains import parse_chain
from capo_ray.problems.rows import RowReport
from capo_ray.prompts import RUBRICS, load_rubric
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem

REACH_S = 5.0
PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}
IMPORT_S = 60.0
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
IMPORT_CHECK = "import sys; from capo_ray.verifiers.child import load_check; load_check('custom', sys.argv[1])"


def check_settings(config: TrainConfig) -> None:
    """Raise for the first setting that names what is not there or cannot work."""
    check_dtype(config)
    if config.credit.asked(Critiques):
        check_rubric(config)
        if config.critic.backend == "endpoint":
            check_endpoint(config)
    check_prompt_template(config)
    check_packages(config)
    check_chat_templates(config)
    check_stop_tokens(config)
    if not config.cluster.joined:  # elsewhere these lie on the cluster's nodes
        check_verifier(config)
        check_environment(config)
        check_first_rows(config)
        trust_solutions(config)


def check_reachable(config: TrainConfig) -> None:
    """Somebody answers at the critic's endpoint and, for models that are not here, at the hub or its proxy."""
    if config.credit.asked(Critiques) and config.critic.backend == "endpoint":
        reach(config.critic.endpoint.base_url, "critic.endpoint.base_url", "start the server, or check the address")
    if config.cluster.joined:
        return
    for model in models(config):
        if find_model(model.name, model.shipped) is None:
            address, whose, cure = door_to_hub()
            reach(address, f"{model.key}: {model.name} is not here, and {whose}", cure)


def check_dtype(config: Job) -> None:
    """bf16 weights have fp32 masters, which ZeRO stage 0 does not keep."""
    learner = config.learner
    if config.model.dtype == "bfloat16" and learner.backend == "zero" and learner.zero_stage == 0:
        raise RunFailed(
            "model.dtype=bfloat16 needs fp32 masters, which learner.zero_stage=0 does not keep; set "
            "learner.zero_stage=1 or more, or model.dtype=float32"
        )


def check_rubric(config: TrainConfig) -> None:
    """The rubric is one of ours, or a template that can work."""
    try:
        load_rubric(config.critic.rubric)
    except (ValueError, OSError) as error:
        from difflib import get_close_matches

        near = get_close_matches(config.critic.rubric, RUBRICS, n=1)
        raise RunFailed(f"{error}{f'; did you mean {near[0]}?' if near else ''}") from error


def check_endpoint(config: TrainConfig) -> None:
    """Address, model and key of the endpoint are given and readable."""
    from capo_ray.critics import build_judge

    asked = config.credit.asked(Critiques)
    assert asked is not None, "only a method that reads critiques has an endpoint"

    try:
        build_judge(config.critic, vote=asked.stops_by, quorum=asked.quorum)
    except (ValueError, OSError) as error:
        got = config.critic.endpoint.base_url
        raise RunFailed(f"{error}{'' if got else ' (got nothing): add critic.endpoint.base_url=…'}") from error


def check_prompt_template(config: Job) -> None:
    """The template has one place for the question, where it is used."""
    template = config.model.prompt_template
    if template.count("{question}") == 1:
        return
    folder = find_model(config.model.path, "policy")
    if config.model.chat_template and (folder is None or has_chat_template(folder)):
        return
    raise RunFailed(
        f"model.prompt_template must hold {{question}} exactly once (got {template!r}), as in 'Solve: {{question}}'"
    )


def check_packages(config: Job) -> None:
    """The packages of trackers and data sets can be imported."""
    for key, package in PACKAGES.items():
        if getattr(config.tracking, key) and find_spec(package) is None:
            raise RunFailed(
                f"tracking.{key}=true needs the package {package}, and it is not installed; pip install "
                f"'capo-ray[{package}]', or set tracking.{key}=false"
            )
    if reads_hub(config.data) and find_spec("datasets") is None:
        raise RunFailed(
            "data.kind=hub needs the package datasets, and it is not installed; pip install 'capo-ray[hub]', or "
            "download the data and give its folder: data.kind=files data.path=FOLDER"
        )
    if isinstance(config, TrainConfig) and (missing := config.environment.missing()):
        raise RunFailed(missing)


def check_chat_templates(config: Job) -> None:
    """The chat templates that are used end."""
    used: list[tuple[str, str, Role]] = []
    if config.model.chat_template:
        used.append(("model", config.model.path, "policy"))
    if isinstance(config, TrainConfig) and config.credit.asked(Critiques):
        critic = config.critic
        if critic.backend == "vllm" and critic.chat_template:
            used.append(("critic", critic.model, "critic"))
    for section, name, role in used:
        folder = find_model(name, role)
        if folder is not None:
            system, more = (
                (config.model.system_prompt, config.model.chat_template_args) if role == "policy" else ("", {})
            )
            render_chat(folder, section, system, "question", more)


def check_stop_tokens(config: TrainConfig) -> None:
    """Each of `model.stop_tokens` is a token of the policy's tokenizer."""
    tokenizer = _tokenizer_of(find_model(config.model.path, "policy")) if config.model.stop_tokens else None
    unknown = [t for t in config.model.stop_tokens if tokenizer is not None and tokenizer.token_to_id(t) is None]
    if unknown:
        raise RunFailed(
            f"model.stop_tokens must be tokens of {config.model.path} (got {unknown[0]!r}); give texts as "
            "model.stop_strings"
        )


def check_verifier(config: TrainConfig) -> None:
    """A verifier of one's own can be imported, the current directory included, and is a function."""
    function = config.verifier.function
    if not function:
        return
    said = f"verifier.path={function}" if config.verifier.path else f"verifier.kind={config.verifier.kind} ({function})"
    path = os.pathsep.join([os.getcwd(), *(entry or os.getcwd() for entry in sys.path)])
    line = [sys.executable, "-c", IMPORT_CHECK, function]
    try:
        done = subprocess.run(
            line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=IMPORT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{said}: expected an import within {IMPORT_S:.0f} s; make the module lighter") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(
            f"{said} must be a function of a module that can be imported here (got: {reason}); name its file, as "
            "./my_rule.py:check, or start where the module lies"
        )


def check_environment(config: TrainConfig) -> None:
    """The environment can be made; where the problems are its own, they are read from it next."""
    section = config.environment
    if section.check and config.data.kind != "environment":
        pkgutil.resolve_name(section.check)(section.model_dump(mode="json"))


def check_first_rows(config: TrainConfig) -> None:
    """The first rows of the data are problems, and some of their prompts fit the context beside a response."""
    data = config.data
    if reads_hub(data):
        return
    if data.makes_problems:
        problems = build_problems(data, config.run.seed, config.environment).held_out(FIRST_ROWS)
    else:
        problems = _first_problems(config)
    check_laptop_critic(config, problems)
    folder = find_model(config.model.path, "policy")
    if folder is not None and (folder / "tokenizer.json").is_file():
        check_lengths(config, problems, folder)


def check_laptop_critic(config: TrainConfig, problems: list[Problem]) -> None:
    """The critic that comes with the package is asked of its own world alone: of anything else it can read nothing."""
    critic = config.critic
    if not config.credit.asked(Critiques) or critic.backend != "vllm" or critic.model not in SHIPPED["critic"]:
        return
    for problem in problems:
        try:
            parse_chain(problem.prompt)
        except ValueError:
            raise RunFailed(
                f"critic.model={critic.model} judges one-digit chains such as 7*8+5-3 and nothing else, but the data "
                f"has {problem.prompt[:60]!r}; choose critic=endpoint, or critic=DIRECTORY of a model, or a method "
                "without critiques (credit=grpo)"
            ) from None


def check_lengths(config: TrainConfig, problems: list[Problem], folder: Path) -> None:
    """Some prompt fits the context beside a response, and, of chains, some solution into a response."""
    tokenizer = _tokenizer_of(folder)
    if tokenizer is None:
        return

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    frame, data = _frame(config, folder), config.data
    shortest = min(count(frame.replace("{question}", problem.prompt)) for problem in problems)
    room, answer = config.model.max_model_len, config.rollout.max_response_tokens
    if shortest + answer > room:
        raise RunFailed(
            f"expected prompt and rollout.max_response_tokens={answer} to fit into model.max_model_len={room}, but the "
            f"shortest of the first {len(problems)} prompts has {shortest} tokens; raise model.max_model_len to "
            f"{shortest + answer} or more, or lower rollout.max_response_tokens"
        )
    least = min(count(problem.solution or "") for problem in problems)
    if data.knows_steps and least > answer:
        raise RunFailed(
            f"expected answers of data.kind={data.kind} to fit into rollout.max_response_tokens="
            f"{answer}, but the shortest solution has {least} tokens; raise rollout.max_response_tokens and "
            "model.max_model_len, or lower the operations of a problem"
        )


def _tokenizer_of(folder: Path | None) -> Any:
    """The tokenizer of a model's directory; None where there is none that can be read."""
    from tokenizers import Tokenizer

    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - it raises nothing narrower; whoever loads the model says what is wrong
        return None


def _first_problems(config: TrainConfig) -> list[Problem]:
    report = RowReport(FIRST_ROWS)
    problems = first_problems(config, report, [])
    if not problems:
        raise RunFailed(
            f"data.path={config.data.path}: expected a problem in one of the first rows, got none "
            f"({report.bad[0] if report.bad else 'no rows'}); set data.question_column, data.answer_column and "
            "data.answer_marker"
        )
    return problems


def _frame(config: TrainConfig, folder: Path) -> str:
    """The prompt with `{question}` where the question goes."""
    model = config.model
    if model.chat_template:
        rendered = render_chat(folder, "model", model.system_prompt, "{question}", model.chat_template_args)
        if rendered:
            return rendered
    return (f"{model.system_prompt}\n" if model.system_prompt else "") + model.prompt_template


def reach(url: str, what: str, cure: str) -> None:
    """Returns once somebody has taken a connection at the address, whose name and key are told to nobody."""
    parts = urlsplit(url)
    where = parts.netloc.rpartition("@")[2]
    try:
        port = parts.port or PORTS.get(parts.scheme, 80)
        where = f"{parts.hostname}:{port}"
        socket.create_connection((parts.hostname or "", port), timeout=REACH_S).close()
    except (OSError, ValueError) as error:  # ValueError: a port that is none
        raise RunFailed(f"{what}: expected an answer at {where}, got: {error}; {cure}") from error
