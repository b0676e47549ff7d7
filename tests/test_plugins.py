"""Methods, segmenters and verifiers of other packages: a distribution on sys.path, as pip would have installed it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pytest

from capo_ray.api import credit
from capo_ray.cli.compose import FAMILIES, compose_train
from capo_ray.cli.rules import check_rules
from capo_ray.cli.schema import ConfigError
from capo_ray.config import TrainConfig
from capo_ray.config.base import RuleError
from capo_ray.config.credit import CreditBase, GrpoConfig, Request
from capo_ray.config.environment import PlayedBase
from capo_ray.config.families import Family
from capo_ray.config.sections import VerifierConfig
from capo_ray.config.steps import DEFAULT_STEPS, StepsBase
from capo_ray.credit import assign_credit, rows
from capo_ray.evidence import EvidenceSource, gather
from capo_ray.metrics.transcripts import group_line
from capo_ray.problems.streams import EnvironmentSource
from capo_ray.protocols import RunFailed
from capo_ray.steps import split_text
from capo_ray.types import Completion, Evidence, Group, GroupCredit, Judged, Problem
from tests.credit_groups import Member, group
from tests.own_package import write_package

MODULE = '''
from typing import ClassVar, Literal
from capo_ray.config.credit import CreditBase, Idle
from capo_ray.credit import rows
from capo_ray.credit.statistics import standardise_scalars

class HalfConfig(CreditBase):
    """Half of what GRPO gives."""
    rule: ClassVar[str] = "half_credit:half"
    method: Literal["half"] = "half"
    share: float = 0.5

    def idle_beside(self, config):
        return (Idle(("credit.share",), config.loss.kl_coef == 0, "where nothing holds it back; raise loss.kl_coef"),)

def half(group, config, progress=0.0):
    rewards = rows.outcome_rewards(group)
    whole = standardise_scalars(rewards, rows.response_weights(group))
    return rows.to_outcome_credit(group, [config.share * a for a in whole], rewards)
'''


class OddConfig(CreditBase):
    """A method that does what it is told, for good or ill."""

    rule: ClassVar[str] = "tests.test_plugins:odd"
    method: Literal["odd"] = "odd"
    does: str


def odd(group: Group, config: OddConfig, progress: float = 0.0) -> Any:
    sizes = [member.num_tokens for member in group.members]
    good = rows.to_outcome_credit(group, [0.5] * len(sizes), rows.outcome_rewards(group))
    if config.does == "raise":
        raise KeyError("no such thing")
    changed: dict[str, dict[str, Any]] = {
        "short": {"advantages": [[1.0] * (n - 1) for n in sizes], "token_rewards": [[1.0] * (n - 1) for n in sizes]},
        "rewards": {"token_rewards": [[1.0] * (n + 1) for n in sizes]},
        "fewer": {"advantages": good.advantages[1:]},
        "steps": {"step_weights": ((),) * len(sizes)},
        "judge": {"included": (True,) * len(sizes)},
        "invalid": {"advantages": [np.ones(n) for n in sizes]},
        "good": {},
    }
    return replace(good, **changed[config.does]) if config.does in changed else good.advantages


class LostConfig(OddConfig):
    """One whose function is not there."""

    rule: ClassVar[str] = "tests.test_plugins:nowhere"
    does: str = ""


class LostEvidence(Request):
    """Evidence that nobody gathers."""

    name: ClassVar[str] = "lost"
    source: ClassVar[str] = "tests.test_plugins:Nowhere"


class OddProblems(PlayedBase):
    """An environment whose own problems are none."""

    problems: ClassVar[str] = "tests.test_plugins:odd_problem"


def odd_problem(seed: int, index: int, split: str, settings: dict[str, Any]) -> None:
    if settings["reply_template"].startswith("raise"):
        raise KeyError("no such thing")


class OddSteps(StepsBase):
    """A segmenter that finds nothing, or halves, in the wrong way."""

    rule: ClassVar[str] = "tests.test_plugins:odd_ends"
    segmenter: Literal["odd"] = "odd"
    halves: bool = False


def odd_ends(response: Completion, steps: OddSteps) -> list[float] | None:
    return [1.5, float(len(response.token_ids))] if steps.halves else None


RIGHT = {"text": "a7", "tokens": ["a", "7"], "reward": 1}
LINE = {"id": "w", "responses": [RIGHT, {**RIGHT, "reward": 0}]}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    info = tmp_path / "half_credit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-credit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[capo_ray.credit_methods]\nhalf = half_credit:HalfConfig\n")
    (tmp_path / "half_credit.py").write_text(MODULE)
    return tmp_path


def python(package: Path, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    command = [sys.executable, *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, env=where, timeout=60, check=False)


SEVERAL = """
import contextlib, io, json, sys
from capo_ray.cli import main
said = []
for words, text in json.load(sys.stdin):
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    said.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(said))
"""


def command_lines(package: Path, *given: tuple[str, str]) -> list[tuple[int, str, str]]:
    """The code, output and errors of several command lines, each (words, standard input), of one new process."""
    done = python(package, "-c", SEVERAL, text=json.dumps([(words.split(), text) for words, text in given]))
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("raise", "raised KeyError: 'no such thing'"),
        ("short", "must return advantages[0] of 3 tokens (got 2)"),
        ("rewards", "must return token_rewards[0] of 3 tokens (got 4)"),
        ("fewer", "must return advantages of 2 responses (got 1)"),
        ("steps", "must return step_weights[0] of 2 steps (got 0)"),
        ("judge", "must return included[1]=False and advantages of 0 for a response without a verdict"),
        ("invalid", "must return included[1]=False and advantages of 0 for a response without a verdict"),
        ("tuple", "must return a GroupCredit (got tuple)"),
    ],
)
def test_what_a_rule_does_wrong_is_said_with_its_class_and_never_trained(does: str, said: str) -> None:
    judged = group(Member(1, [2, 1]), Member(None, [2]))
    with pytest.raises(RuleError) as caught:
        assign_credit(judged, OddConfig(does=does))
    assert str(caught.value).startswith(f"OddConfig (tests.test_plugins:odd) {said}")
    assert isinstance(assign_credit(judged, OddConfig(does="good")), GroupCredit)


def test_the_traceback_of_a_rule_that_raises_leads_into_it() -> None:
    with pytest.raises(RuleError) as caught:
        assign_credit(group(Member(1, [1])), OddConfig(does="raise"))
    assert caught.traceback[-1].name == "odd"


@pytest.mark.parametrize("halves", [False, True])
def test_a_segmenter_that_returns_no_ends_is_named(halves: bool) -> None:
    with pytest.raises(RuleError, match=r"OddSteps \(tests.test_plugins:odd_ends\) raised TypeError"):
        split_text("1+1 = 2", OddSteps(halves=halves))


def test_two_methods_of_one_name_are_refused_and_a_key_without_default_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = "capo_ray.credit_methods"
    offered = [EntryPoint("grpo", "tests.test_plugins:LostConfig", group)]
    offered.append(EntryPoint("odd", "tests.test_plugins:OddConfig", group))
    monkeypatch.setattr("capo_ray.config.families.entry_points", lambda group: offered)
    family = Family("credit", "method", CreditBase, group, [GrpoConfig])
    monkeypatch.setitem(FAMILIES, "credit", family)
    with pytest.raises(ConfigError, match=r"credit=grpo is of the package .* \(ValueError: another has that name\)"):
        compose_train(["credit=grpo"])
    assert list(family) == ["grpo"]
    assert "(ValidationError: does: Field required); mend" in family.broken["odd"]


@pytest.mark.parametrize(("how", "said"), [("raise", "raised KeyError: 'no such"), ("none", "must return a Problem")])
def test_what_makes_an_environments_problems_is_named_where_it_fails(how: str, said: str) -> None:
    section = PlayedBase(kind="odd", reply_template=f"{how} {{reply}}")
    with pytest.raises(RunFailed, match=f"environment=odd: tests.test_plugins:odd_problem {said}"):
        EnvironmentSource(OddProblems(**section.model_dump()), 0).next_problem()


def test_evidence_of_another_package_is_kept_in_transcripts_whatever_numbers_it_is_made_of() -> None:
    def line(value: object) -> Any:
        (member,) = (judged := group(Member(1, [1]))).members
        judged = replace(judged, members=(replace(member, evidence=Evidence(more={"own": value})),))
        told = group_line(1, judged, assign_credit(judged, GrpoConfig()))
        return json.loads(json.dumps(told, allow_nan=False))["responses"][0]["own"]

    told = {"a": np.arange(2.0), "b": (np.float32(0.5), float("nan"), True), "c": np.int64(3)}
    assert line(told) == {"a": [0, 1], "b": [0.5, None, True], "c": 3}
    with pytest.raises(RunFailed, match=r"Evidence.more\['own'\] must hold numbers, .* \(got set\)"):
        line({1, 2})


@pytest.mark.parametrize("found", [(), (Evidence(), Evidence()), (0.5,)])
def test_a_source_that_does_not_answer_for_each_response_is_named(found: Any) -> None:
    class Odd(EvidenceSource):
        async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
            return cast(Sequence[Evidence], found)

    judged = group(Member(1, [1]), Member(None, [1]))
    with pytest.raises(RunFailed, match=r"Odd.gather must return Evidence of each of 1 responses \(got"):
        asyncio.run(gather([Odd(None, cast(Any, None))], judged.problem, judged.members, 0.0))


def test_a_function_that_is_not_there_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"steps": DEFAULT_STEPS, "environment": PlayedBase(kind="x"), "verifier": VerifierConfig(kind="exact")}
    chosen = SimpleNamespace(credit=LostConfig(), **sections)
    with pytest.raises(RunFailed, match=r"credit=odd: LostConfig.rule='tests.test_plugins:nowhere' cannot be found"):
        check_rules(cast(TrainConfig, chosen))
    chosen.credit = GrpoConfig()
    check_rules(cast(TrainConfig, chosen))
    with monkeypatch.context() as patch:
        patch.setattr("capo_ray.cli.rules.offered_functions", lambda group: {"exact": "their:rule"})
        with pytest.raises(RunFailed, match=r"verifier.kind=exact is ours, but their:rule has that name too"):
            check_rules(cast(TrainConfig, chosen))
    monkeypatch.setattr(GrpoConfig, "evidence", lambda self: (LostEvidence(),))
    with pytest.raises(RunFailed, match=r"LostEvidence.source must be package.module:Class of an EvidenceSource"):
        check_rules(cast(TrainConfig, chosen))


def test_from_python_a_rule_that_raises_is_a_run_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrpoConfig, "rule", "tests.test_plugins:odd")
    monkeypatch.setattr("capo_ray.credit.table.rule_of", lambda kind: kind.find_rule())
    with pytest.raises(RunFailed, match=r"group 1: GrpoConfig .* raised AttributeError"):
        credit([LINE], "grpo")


@pytest.mark.slow
def test_a_method_of_another_package_is_used_like_one_of_ours(package: Path) -> None:
    words = ("-m", "capo_ray", "credit", "half", "--input", "-", "--json", "credit.share=0.25")
    done = python(package, *words, text=json.dumps(LINE))
    assert done.returncode == 0, done.stderr
    assert [r["advantages"] for r in json.loads(done.stdout)["responses"]] == [[0.25] * 2, [-0.25] * 2]
    # Its module may be the first to be imported, as in a Ray worker that unpickles its config.
    script = (
        "import half_credit, pickle; from capo_ray.cli.compose import compose_train, list_choices\n"
        "config = compose_train(['credit=half', 'credit.share=0.75'])\n"
        "assert pickle.loads(pickle.dumps(config)) == config and config.credit.share == 0.75\n"
        "assert 'half' in list_choices('credit')\n"
        "from capo_ray.cli.schema import ConfigError\n"
        "for given in ['credit=haf'], ['credit=half', 'loss.kl_coef=0', 'credit.share=0.75']:\n"
        "    try: compose_train(given)\n"
        "    except ConfigError as error: print(error)\n"
    )
    done = python(package, "-c", script)
    assert done.returncode == 0, done.stderr
    assert "did you mean credit=half?" in done.stdout
    assert "credit.share has no effect where nothing holds it back; raise loss.kl_coef" in done.stdout


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_is_named_and_harms_no_other_method(package: Path) -> None:
    (package / "half_credit.py").write_text("import a_package_that_is_not_here\n")
    line = json.dumps(LINE)
    refused, ours = command_lines(package, ("credit half --input -", line), ("credit grpo --input -", line))
    assert refused[0] != 0
    assert "credit=half is of the package half-credit" in refused[2]
    assert "a_package_that_is_not_here" in refused[2] and "Traceback" not in refused[2]
    assert ours[0] == 0


@pytest.mark.slow
def test_a_segmenter_of_another_package_is_used_like_one_of_ours(tmp_path: Path) -> None:
    own = "--input - --json steps=own_lines steps.num_lines=2"
    solution = json.dumps({"question": "q", "response": "1+1 = 2\n2+1 = 3\n3+1 = 4\nSo 4."})
    member = {"text": "a\nb\nc", "tokens": list("a\nb\nc"), "reward": 1, "flagged": [[]]}
    shown, planned, judged, credited, refused = command_lines(
        write_package(tmp_path / "site"),
        ("train --help", ""),
        ("train credit=own steps=own_lines steps.num_lines=2 --dry-run", ""),
        (f"critique {own} critic.backend=calculator", solution),
        (f"credit own {own}", json.dumps({"id": "l", "responses": [member] * 2})),
        ("train steps=own_lines steps.window=3 --dry-run", ""),
    )
    assert ", own_lines, " in shown[1]
    assert planned[0] == 0, planned[2]
    assert planned[1].splitlines()[-3:] == ["credit=own", "steps=own_lines", "steps.num_lines=2"]
    assert judged[0] == 0, judged[2]
    assert json.loads(judged[1])["summary"]["steps"] == 2
    assert credited[0] == 0, credited[2]
    assert [r["steps"] for r in json.loads(credited[1])["responses"]] == [[[0, 4], [4, 5]]] * 2
    assert "steps.window is no key of steps=own_lines" in refused[2]


@pytest.mark.slow
def test_an_environment_of_another_package_is_used_like_one_of_ours(tmp_path: Path) -> None:
    package = write_package(tmp_path / "site")
    script = (
        "import asyncio\n"
        "from capo_ray.cli.compose import compose_train\n"
        "from capo_ray.environments import Children\n"
        "from capo_ray.types import Problem\n"
        "async def ask(said):\n"
        "    with Children(compose_train(['environment=own_echo', 'environment.ends=bye']).environment) as children:\n"
        "        return [await children.ask(Problem('p', 'q', 'a'), one) for one in said]\n"
        "first, last = asyncio.run(ask([('hi',), ('hi', 'bye')]))\n"
        "assert (first.text, first.done, last.done) == ('HI', False, True)\n"
    )
    done = python(package, "-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_verifier_of_another_package_is_used_like_one_of_ours(tmp_path: Path) -> None:
    pairs = "".join(json.dumps({"answer": "7", "response": text}) + "\n" for text in ("so 7.", "so 17"))
    shown, verify, planned, judged, refused = command_lines(
        write_package(tmp_path / "site"),
        ("train --help", ""),
        ("verify --help", ""),
        ("train verifier.kind=own_end --dry-run", ""),
        ("verify --kind own_end --input -", pairs),
        ("verify --kind own_and --input -", pairs),
    )
    assert "custom, own_end" in shown[1]
    assert "own_end" in verify[1]
    assert planned[0] == 0, planned[2]
    assert re.search(r"verifier +1 .* own_end, 1 child", planned[1])
    assert [json.loads(line)["reward"] for line in judged[1].splitlines()] == [1, 0], judged[2]
    assert "verifier.kind=own_and is no verifier; did you mean own_end?" in refused[2]


@pytest.mark.slow
def test_a_broken_package_is_one_sentence(tmp_path: Path) -> None:
    package = write_package(tmp_path / "site")
    (package / "own_parts.py").write_text("import a_package_that_is_not_here\n")
    said = {
        "credit=own": "credit=own is of the package own-parts, which cannot give it",
        "steps=own_lines": "steps=own_lines is of the package own-parts, which cannot give it",
        "environment=own_echo": "environment=own_echo is of the package own-parts, which cannot give it",
        "verifier.kind=own_end": "verifier.kind=own_end (own_parts:same_end) must be a function",
    }
    refused = command_lines(package, *((f"train {override} --dry-run", "") for override in said))
    for (code, _, error), sentence in zip(refused, said.values(), strict=True):
        assert code == 1
        assert sentence in error and "a_package_that_is_not_here" in error
        assert len(error.strip().splitlines()) == 1
