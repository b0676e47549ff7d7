"""What a setting names is looked at before anything starts, by a dry run too."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from pathlib import Path

import pytest

from capo_ray.cli import chat, main, settings
from capo_ray.cli.chat import render_chat
from capo_ray.cli.checks import check_model
from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.cli.settings import check_packages, check_reachable, check_settings
from capo_ray.config.sections import DataConfig
from capo_ray.problems import asset_path, build_problems
from capo_ray.problems.files import MAX_ROW_BYTES
from capo_ray.protocols import RunFailed
from capo_ray.verifiers import VerifierPool
from capo_ray.written import RECIPE
from tests.model_files import write_model


def refused(*overrides: str) -> str:
    with pytest.raises(RunFailed) as caught:
        check_settings(compose_train(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_default_run_passes() -> None:
    check_settings(compose_train([]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("critic.rubric=papr", "critic.rubric must be one of paper, every_step, compact or the path"),
        ("critic.rubric=papr", "did you mean paper?"),
        ("critic=endpoint", "add critic.endpoint.base_url="),
        ("critic=endpoint critic.endpoint.base_url=host:80", "base_url must be http(s)://"),
        ("critic=endpoint critic.endpoint.base_url=http://host", "critic.endpoint.model"),
        (
            "critic=endpoint critic.endpoint.base_url=http://host critic.endpoint.model=m critic.endpoint.key_file=/no",
            "key_file must be a file",
        ),
        ("model.prompt_template=Solve", "must hold {question} exactly once (got 'Solve')"),
        ("model.dtype=bfloat16 learner.zero_stage=0", "set learner.zero_stage=1 or more"),
        ("tracking=wandb", "pip install 'capo-ray[wandb]', or set tracking.wandb=false"),
        ("tracking=mlflow", "tracking.mlflow=true needs the package mlflow"),
        ("tracking=trackio", "tracking.trackio=true needs the package trackio"),
        ("data=math data.kind=hub data.path=some/set", "pip install 'capo-ray[hub]'"),
        ("verifier.kind=custom verifier.path=no_such_module:check", "No module named 'no_such_module'"),
        ("verifier.kind=custom verifier.path=json:nothing", "has no attribute 'nothing'"),
        ("verifier.kind=custom verifier.path=json:__name__", "it is no function"),
        ("data.chain_steps=40", "but the shortest solution has"),
        ("model.max_model_len=100", "raise model.max_model_len to 110 or more"),
    ],
)
def test_a_setting_that_cannot_work_is_named(overrides: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"wandb", "mlflow", "trackio", "datasets"}
    monkeypatch.setattr("capo_ray.cli.settings.find_spec", lambda name: None if name in missing else object())
    assert words in refused(*overrides.split())


def test_a_dry_run_tells_the_same_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run", "critic.rubric=nope"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("capo-ray train: critic.rubric must be one of") and said.count("\n") == 1


def test_a_verifier_beside_the_caller_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rule.py").write_text("def check(answer, response):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    check_settings(compose_train(["verifier.kind=custom", "verifier.path=my_rule:check"]))


def test_a_verifier_is_named_by_its_file_and_may_import_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "beside.py").write_text("RIGHT = True\n")
    (rules / "json.py").write_text("from beside import RIGHT\ndef check(answer, response):\n    return RIGHT\n")
    monkeypatch.chdir(tmp_path)
    config = compose_train(["verifier.kind=custom", "verifier.path=./rules/json.py:check"])
    check_settings(config)
    monkeypatch.chdir("/")  # as a worker on another node may start
    with VerifierPool(config.verifier.model_copy(update={"timeout_s": 30.0})) as pool:
        (verdict,) = asyncio.run(pool.verify("1", ["so 2"]))
    assert verdict.reward == 1
    assert "No such file" in refused("verifier.kind=custom", "verifier.path=./no_rule.py:check")
    assert "name its file, as ./my_rule.py:check" in refused("verifier.kind=custom", "verifier.path=no_rule:check")


def test_an_environment_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("credit=grpo", "environment=gymnasium", "data=environment", "steps=turn", "tracking=files")
    assert "environment.id must name a registered environment" in refused(*words)
    assert "environment.id must name a registered environment" in refused(*words, "environment=verifiers")
    monkeypatch.setattr("capo_ray.config.environment.find_spec", lambda name: None)
    assert "needs the package gymnasium, and it is not installed" in refused(*words, "environment.id=FrozenLake-v1")
    check_packages(compose_train([*words, "environment.id=tests.own_environment:Line"]))
    needed = refused(*words, "environment=verifiers", "environment.id=wordle")
    assert "needs the package verifiers, and it is not installed; pip install 'verifiers>=0.1.14,<0.4'" in needed


def test_the_shipped_critic_is_refused_for_what_it_cannot_read(tmp_path: Path) -> None:
    own = rows(tmp_path / "d.jsonl", {"question": "What is 1 + 1?", "answer": "2"})
    words = ["data.kind=jsonl", f"data.path={own}"]
    assert "judges one-digit chains such as 7*8+5-3 and nothing else, but the data has 'What is" in refused(*words)
    check_settings(compose_train([*words, "credit=grpo"]))
    check_settings(compose_train([*words, "critic=calculator"]))
    chains = rows(tmp_path / "c.jsonl", {"question": "7*8+5", "answer": "1"})
    check_settings(compose_train(["data.kind=jsonl", f"data.path={chains}"]))
    assert "judges one-digit chains" in refused("environment=grid", "data=environment", "steps=turn")
    assert "but the data has '[1] " in refused("credit=eapo", "credit.scorer=critic")


def test_columns_that_no_first_row_has_are_told_with_those_it_has(tmp_path: Path) -> None:
    path = rows(tmp_path / "d.jsonl", *({"problem": "1 + 1", "label": "2"},) * 3)
    text = refused("data=gsm8k", f"data.path={path}")
    assert "expected a column 'question'" in text and "got 'problem', 'label'" in text
    assert "data.question_column" in text
    (tmp_path / "bad.jsonl").write_text("no json\n")
    assert "expected a JSON object" in refused("data=gsm8k", f"data.path={tmp_path / 'bad.jsonl'}")


def test_rows_of_which_some_are_problems_pass(tmp_path: Path) -> None:
    path = rows(tmp_path / "d.jsonl", {"other": 1}, {"question": "1 + 1", "answer": "so\n#### 2"})
    check_settings(compose_train(["data=gsm8k", f"data.path={path}", "credit=grpo"]))


def test_a_line_of_megabytes_is_a_bad_row_and_costs_nothing(tmp_path: Path) -> None:
    good = {"question": "1 + 1", "answer": "#### 2"}
    long = {"question": "1" * (8 * MAX_ROW_BYTES), "answer": "#### 2"}
    path = rows(tmp_path / "d.jsonl", good, long, {"question": "2 + 1", "answer": "#### 3"})
    config = DataConfig(kind="jsonl", path=str(path), answer_marker="####", eval_frac=0)
    started = time.perf_counter()
    problems = build_problems(config, 0)
    assert time.perf_counter() - started < 2
    assert [bad.partition(": ")[2] for bad in problems.bad_rows] == [
        "expected a line of at most 1 MiB, got a longer one"
    ]
    assert {problems.train.next_problem().prompt for _ in range(2)} == {"1 + 1", "2 + 1"}


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HUGE = "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}<|assistant|>"


@pytest.mark.slow
@pytest.mark.parametrize("template", [LOOP, HUGE])
def test_a_chat_template_that_does_not_end_is_refused(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "CPU_S", 1)
    folder = write_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(template)
    started = time.perf_counter()
    text = refused(f"model={folder}", "model.chat_template=true")
    assert "expected the chat template of" in text and "set model.chat_template=false" in text
    assert time.perf_counter() - started < 30
    check_settings(compose_train([f"model={folder}"]))  # not used, so not rendered


def test_a_chat_template_is_rendered_as_the_tokenizer_does(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": PLAIN, "eos_token": {"content": "</s>"}})
    )
    assert render_chat(folder, "model", "be brief", "2 + 2?") == (
        "<|system|>be brief</s>\n<|user|>2 + 2?</s>\n<|assistant|>"
    )
    assert render_chat(write_model(tmp_path / "none"), "model", "", "q") is None


REFUSES = "{{ raise_exception('System role not supported') if messages[0].role == 'system' else messages[0].content }}"


def test_turns_that_a_chat_template_refuses_are_named_with_their_key(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(REFUSES)
    asked = (f"model={folder}", "model.chat_template=true")
    text = refused(*asked, "model.system_prompt=Box it.")
    assert "model.system_prompt: the chat template of" in text and "System role not supported" in text
    check_settings(compose_train([*asked, "model.system_prompt="]))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    assert "model.chat_template: the chat template of" in refused(*asked)


def test_names_that_a_chat_template_reads_are_given_by_key_and_others_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{% if not think %}<think></think>{% endif %}")
    asked = (f"model={folder}", "model.chat_template=true")
    config = compose_train([*asked, "model.chat_template_args.think=true"])
    check_settings(config)
    assert render_chat(folder, "model", "", "q", config.model.chat_template_args) == "q"
    assert render_chat(folder, "model", "", "q") == "q<think></think>"
    text = refused(*asked, "model.chat_template_args.thinking=true")
    assert "model.chat_template_args.thinking has no effect" in text
    with pytest.raises(ConfigError, match=r"model\.chat_template_args.* has no effect with model\.chat_template=false"):
        compose_train([f"model={folder}", "model.chat_template_args.think=true"])


def test_chat_templates_without_a_default_are_refused_by_their_names(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    named = [{"name": "tool_use", "template": PLAIN}, {"name": "rag", "template": PLAIN}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert "expected a default among the chat templates of" in refused(f"model={folder}", "model.chat_template=true")


def test_a_stop_token_that_is_none_is_refused(tmp_path: Path) -> None:
    text = refused("model.stop_tokens=['<|im_end|>']")
    assert "model.stop_tokens must be tokens of laptop (got '<|im_end|>')" in text
    check_settings(compose_train(["model.stop_tokens=['+']", "model.stop_strings=['Q:']"]))


def test_an_endpoint_that_nobody_serves_is_refused_with_its_address() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    config = compose_train(
        ["critic=endpoint", f"critic.endpoint.base_url=http://127.0.0.1:{port}/v1", "critic.endpoint.model=m"]
    )
    with pytest.raises(RunFailed, match=rf"127\.0\.0\.1:{port}, got: .*refused; start the server"):
        check_reachable(config)


@pytest.mark.usefixtures("no_proxies")
def test_a_hub_that_does_not_answer_is_named_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match=r"model.path: some/model is not here, and its hub: .*check the network"):
        check_reachable(compose_train(["model=some/model"]))
    check_reachable(compose_train([]))


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    "variable, hub", [("HTTPS_PROXY", ""), ("ALL_PROXY", ""), ("http_proxy", "http://hub.invalid")]
)
def test_behind_a_proxy_the_proxy_is_looked_for_and_not_the_hub(
    variable: str, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_train(["model=some/model"])
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setattr(settings, "REACH_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        monkeypatch.setenv(variable, f"http://me:secret@127.0.0.1:{port}")
        check_reachable(config)
        monkeypatch.setenv(variable, f"127.0.0.1:{port}")
        check_reachable(config)
    for given, told in ((f"http://me:secret@127.0.0.1:{port}", f"127.0.0.1:{port}"), ("http://me:secret@p:x", "p:x")):
        monkeypatch.setenv(variable, given)
        with pytest.raises(RunFailed) as caught:
            check_reachable(config)
        name = variable.upper()
        assert f"some/model is not here, and the proxy to its hub ({name}): expected an answer at {told}, got: " in str(
            caught.value
        )
        assert "check the proxy, add hu" in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.usefixtures("no_proxies")
def test_a_hub_that_no_proxy_is_for_is_looked_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # of another scheme
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        check_reachable(compose_train(["model=some/model"]))
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
        with pytest.raises(RunFailed, match=r"and its hub: expected an answer at 127\.0\.0\.1:9, got"):
            check_reachable(compose_train(["model=some/model"]))


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_a_flipped_byte_in_shipped_weights_is_one_sentence(
    tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capo_ray.engines import EngineSpec, VllmEngine
    from capo_ray.learners.file_names import Files
    from capo_ray.learners.recipe import load_model

    folder = tmp_path / "model"
    shutil.copytree(asset_path("laptop", role), folder)
    check_model(str(folder), role, "model.path", 256)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    loads = [
        lambda: check_model(str(folder), role, "model.path", 256),
        lambda: VllmEngine(EngineSpec(model_path=str(folder))).start(),
        lambda: Files(str(folder)),
        lambda: load_model(str(folder)),
    ]
    for load in loads:
        with pytest.raises(RunFailed, match=r"^expected .*model\.safetensors to have the sha256 .* it is damaged; .*$"):
            load()
    monkeypatch.setattr("capo_ray.cli.checks.LOOK_BYTES", len(content) - 1)
    check_model(str(folder), role, "model.path", 256)  # a large model is compared where it is loaded
    (folder / RECIPE).write_text('{"sha256": {"/dev/zero": "0"}}')
    with pytest.raises(RunFailed, match="to name the weight files beside it, got zero, which is no file there"):
        Files(str(folder))
    (folder / RECIPE).unlink()
    check_model(str(folder), role, "model.path", 256)
