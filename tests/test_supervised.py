"""Supervised training: what carries loss, what the gradient depends on, the command, and the shipped checkpoints."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from capo_ray.cli import main, sft
from capo_ray.cli.schema import ConfigError
from capo_ray.cli.sft_eval import complete, max_tokens_of
from capo_ray.config.sft import SftConfig, SftModelConfig
from capo_ray.config.shipped import SHIPPED
from capo_ray.engines import HfTokenizer
from capo_ray.flow.supervised import Example, imitation_batch, to_example
from capo_ray.learners import Learner
from capo_ray.learners.recipe import load_model, model_from_scratch
from capo_ray.place.sft import spec_of
from capo_ray.problems import asset_path
from capo_ray.problems.chains import demonstrate, draw_chain, make_problem, response_text, true_wrong_steps
from capo_ray.problems.chains_lessons import critic_completion, critic_prompt, read_incorrect_steps
from capo_ray.problems.chains_tokenizer import build_tokenizer
from capo_ray.problems.lessons import build_lessons
from capo_ray.protocols import RunFailed
from capo_ray.written import sha256

MODELS = [(name, role) for role, names in SHIPPED.items() for name in names]
SIZES = SftModelConfig(hidden_size=32, num_layers=1, num_heads=1, intermediate_size=32)
EXAMPLES = [Example(tuple(range(4, 4 + n)), p) for n, p in ((5, 2), (9, 4), (7, 1), (12, 11))]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a small model, and of its tokenizer."""
    path = tmp_path_factory.mktemp("start")
    small_model().save_pretrained(path)
    build_tokenizer("policy").save_pretrained(path)
    return str(path)


def small_model(seed: int = 0) -> torch.nn.Module:
    return model_from_scratch(SIZES, build_tokenizer("policy"), seed)


def config(learner: dict[str, object] | None = None, **more: object) -> SftConfig:
    steady = {"warmup_updates": 0, "schedule": "constant", "lr": 1e-3, **(learner or {})}
    return SftConfig(**{"run": {"num_updates": 4}, "batch_size": 4, "learner": steady, **more})


def losses_on_examples(learner: Learner, c: SftConfig) -> list[float]:
    """The losses of all updates, each on EXAMPLES."""
    updates = range(c.run.num_updates)
    reports = [learner.update(imitation_batch(EXAMPLES, c, update).column(0)) for update in updates]
    return [report.metrics["loss/objective_mean"] for report in reports]


@pytest.fixture(autouse=True)
def runs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_recipe(directory: Path) -> tuple[SftConfig, dict[str, Any]]:
    """The config of a model directory's recipe, and the whole recipe."""
    recipe = json.loads((directory / "recipe.json").read_text())
    return SftConfig.model_validate(recipe["config"]), recipe


def run(*overrides: str) -> int:
    return main(["sft", *overrides])


def nats(model: torch.nn.Module, example: Example, prompt_weight: float) -> tuple[torch.Tensor, float]:
    """By hand: the weighted sum of -log p over an example's tokens but the first, and the sum of their weights."""
    logprobs = torch.log_softmax(model(input_ids=torch.tensor([example.token_ids])).logits[0], -1)
    total, weights = torch.zeros(()), 0.0
    for t in range(1, len(example.token_ids)):
        weight = 1.0 if t >= example.num_prompt_tokens else prompt_weight
        total = total - weight * logprobs[t - 1, example.token_ids[t]]
        weights += weight
    return total, weights


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
@pytest.mark.parametrize("microbatch_tokens", [10, 1000])
def test_updates_are_those_of_the_weighted_mean_cross_entropy(start: str, prompt_weight: float, microbatch_tokens: int):
    c = config({"microbatch_tokens": microbatch_tokens, "max_grad_norm": 0.5}, prompt_loss_weight=prompt_weight)
    learner = Learner(spec_of(c, start))
    ours = losses_on_examples(learner, c)
    model, losses = small_model(), []
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(4):
        parts = [nats(model, example, prompt_weight) for example in EXAMPLES]
        loss = sum(part for part, _ in parts) / sum(weight for _, weight in parts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert ours == pytest.approx(losses, abs=1e-5)
    trained = learner.named_tensors()
    assert trained is not None
    for name, param in model.named_parameters():
        assert torch.allclose(trained[name], param, atol=2e-5), name


def test_a_sample_begins_where_its_tokens_carry_loss():
    def starts(prompt_weight: float) -> Sequence[int]:
        batch = imitation_batch(EXAMPLES, config(prompt_loss_weight=prompt_weight), 0)
        samples = {w.sample.key.sample: w.sample for cell in batch.column(0) for w in cell}
        return [len(samples[i].token_ids) - samples[i].num_response_tokens for i in range(len(EXAMPLES))]

    assert starts(0.0) == [2, 4, 1, 11]
    assert starts(0.5) == [1, 1, 1, 1]


def test_training_in_bf16_lowers_the_loss_and_writes_bf16(start: str, tmp_path: Path):
    c = config({"lr": 1e-2}, run={"num_updates": 30}, model=SftModelConfig(dtype="bfloat16"))
    learner = Learner(spec_of(c, start))
    losses = losses_on_examples(learner, c)
    assert losses[-1] < 0.5 * losses[0]
    learner.snapshot().export(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = small_model()
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.get_input_embeddings().weight[6:].fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    build_tokenizer("policy").save_pretrained(tmp_path / "nan")
    assert run(f"model.path={tmp_path / 'nan'}", "batch_size=4") == 1
    said = capsys.readouterr().err
    assert "of update 0 is not finite: lower learner.lr" in said
    assert "no checkpoint of version 1 could be saved" in said


def test_prompts_of_a_file_are_data_in_the_frame_of_training(start: str, tmp_path: Path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"prompt": "1<|im_end|>+1", "response": "2"}) + "\n")
    tokenizer = HfTokenizer(start)
    tokenizer.hf.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.hf.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.hf.save_pretrained(tmp_path / "chat")

    def first(**frame: object) -> tuple[list[int], list[int]]:
        """Ids of the first prompt, and those among them that end a turn."""
        chat = HfTokenizer(tmp_path / "chat")
        c = config(data={"kind": "jsonl", "path": str(lines)}, model={"path": start, **frame})
        example = to_example(build_lessons(c.data, 0).train.next_problem(), c, chat)
        ids = list(example.token_ids[: example.num_prompt_tokens])
        return ids, [i for i in ids if i == chat.encode("<|im_end|>")[0]]

    template = "Answer in \\boxed{} please: {question}\n"
    ids, ends = first(prompt_template=template)
    assert tokenizer.decode(ids) == "Answer in \\boxed{} please: 1<|im_end|>+1\n"
    assert not ends
    assert len(first(chat_template=True)[1]) == 1


def test_sampling_in_batches_equals_greedy_decoding_one_by_one():
    model, tokenizer = small_model().eval(), build_tokenizer("policy")
    prompts = ["7*8+5-3\n", "1+1\n", "3*3-4\n", "2"]
    together = complete(model, tokenizer, prompts, max_tokens=6, temperature=0.0)
    for prompt, completion in zip(prompts, together, strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        told = len(ids)
        while len(ids) < told + 6:
            chosen = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if chosen == tokenizer.eos_token_id:
                break
            ids.append(chosen)
        assert completion == tokenizer.decode(ids[told:], skip_special_tokens=True)


def test_a_dry_run_tells_placement_and_memory_and_refuses_what_a_run_would(capsys: pytest.CaptureFixture[str]):
    assert run("--dry-run", "model.path=laptop", "learner.backend=zero", "learner.num_ranks=2") == 0
    told = capsys.readouterr().out
    assert "400 updates x 96 = 38,400 examples in all" in told
    assert re.search(r"^learner +2 +1 +0  DeepSpeed ZeRO-2$", told, re.M)
    assert re.search(r"^learner +2 x +[0-9.]+ GiB host .* moments 8 B x N / 2", told, re.M)
    assert "driver and Ray" in told and 'model.path="laptop"' in told and not Path("runs").exists()
    assert run("--json") == 1 and "--json belongs to --dry-run" in capsys.readouterr().err
    assert run("--dry-run", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["memory"]
    made = model_from_scratch(SftModelConfig(), build_tokenizer("policy"), 0)
    terms = {term["name"]: term["gib"] for term in row["terms"]}
    assert terms["moments"] * 2**30 == pytest.approx(8 * sum(p.numel() for p in made.parameters()))
    assert run("--dry-run", "model.path=/no/such") == 1
    row = ("learner.num_ranks=2", "learner.sequence_parallel=2", "learner.backend=zero")
    assert run("--dry-run", "model.path=laptop", *row) == 1
    assert "learner.sequence_parallel=2 cannot share 3 attention heads of laptop; set 1, 3" in capsys.readouterr().err


def test_the_command_trains_from_a_directory_on_jsonl_and_keeps_its_recipe(tmp_path: Path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    sizes = [f"model.{name}={value}" for name, value in SIZES.model_dump(exclude_defaults=True).items()]
    assert run(f"out={first}", "run.num_updates=2", "batch_size=4", "eval_problems=4", *sizes) == 0
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"prompt": f"{k}+1", "response": f"{k + 1}"}) + "\n" for k in range(5)))
    overrides = (f"model.path={first}", "data.kind=jsonl", f"data.path={lines}", "run.num_updates=3", "batch_size=4")
    assert run(f"out={second}", *overrides) == 0
    written, recipe = read_recipe(second)
    assert written.data.path == str(lines)
    assert len(recipe["first_losses"]) == 3
    assert recipe["start"] == read_recipe(first)[1]
    assert sft.read_config(["out=x"], str(second / "recipe.json"), start=True).run.num_updates == 2
    assert run(f"--recipe={first / 'recipe.json'}", "--start", "out=x") == 1
    assert "expected --recipe of a model that was started from another" in capsys.readouterr().err
    assert recipe["sha256"] == {"model.safetensors": sha256(second / "model.safetensors")}
    before, _ = load_model(str(first))
    after, tokenizer = load_model(str(second))
    assert not torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    assert tokenizer.eos_token_id == 1
    assert run(f"out={second}", *overrides) == 1
    assert "to be new or empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["learner.lrr=1"], "learner.lrr is no key; did you mean learner.lr?"),
        (["learning_rate=1"], "learning_rate is no key; did you mean learner.lr?"),
        (["learner.lr=0"], "learner.lr: expected greater than 0, got 0"),
        (["nonsense"], "expected key=value, got 'nonsense'"),
        (["model.path=${oc.env:HOME}"], "model.path: expected a plain value, got ${oc.env:HOME}"),
        (["data.kind=jsonl", "model.path=laptop"], "data.path: expected the file or folder for data.kind=jsonl"),
        (["data.min_steps=9"], "data.min_steps must be <= data.max_steps"),
        (
            ["model.path=laptop", "data.kind=jsonl", "data.path=x", "model.prompt_template=q"],
            "must hold {question} exactly",
        ),
        (["data.role=critic", "eval_policy=/no/such/model"], "got '/no/such/model'"),
        (["model.path=/no/such/model"], "a Hugging Face model directory or hub name, but there is no /no/such/model"),
        (["data.kind=jsonl", "data.path=/no/such.jsonl", "model.path=laptop"], "no file"),
        (["data.kind=jsonl", "data.path=/no/such.jsonl"], "data.kind=jsonl needs model.path"),
        (["num_updates=3"], "num_updates is no key; did you mean run.num_updates?"),
        (["learner.num_ranks=2"], "learner.num_ranks must be 1 (got 2); add learner.backend=zero"),
        (["learner.backend=zero", "learner.zero_stage=0", "model.dtype=bfloat16"], "set learner.zero_stage=1"),
        (["resume=/no/such/run"], "resume: expected a run directory with config.yaml, got /no/such/run"),
        (["learner.num_gpus=1"], "expected 1 GPU(s), found none here; set learner.num_gpus=0"),
    ],
)
def test_bad_options_get_a_sentence(overrides, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(f"out={tmp_path / 'out'}", *overrides) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


def test_a_recipe_cannot_draw_on_the_environment(tmp_path: Path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"config": {"data": {"system_prompt": "${oc.env:HOME}"}}}))
    with pytest.raises(ConfigError, match=r"data.system_prompt: expected a plain value, got \$\{oc.env:HOME\}"):
        sft.read_config([], str(recipe))


def test_a_recipe_can_be_cooked_again_with_overrides_on_top():
    recipe = asset_path("laptop", "policy") / "recipe.json"
    again = sft.read_config(["out=elsewhere", "model.num_layers=5"], str(recipe))
    written, _ = read_recipe(recipe.parent)
    assert (again.out, again.model.num_layers) == ("elsewhere", 5)
    assert (again.learner, again.model.hidden_size) == (written.learner, written.model.hidden_size)
    with pytest.raises(RunFailed, match=r"expected the recipe.json of a model directory, got /no/such.json"):
        sft.read_config([], "/no/such.json")


@pytest.mark.parametrize(("name", "role"), MODELS)
def test_the_shipped_weights_are_those_of_their_recipe(name, role):
    directory = asset_path(name, role)
    written, recipe = read_recipe(directory)
    assert recipe["sha256"] == {"model.safetensors": sha256(directory / "model.safetensors")}
    model, tokenizer = load_model(str(directory))
    assert len(tokenizer) == model.config.vocab_size == len(build_tokenizer(role))
    assert sum(p.numel() for p in model.parameters()) == recipe["num_parameters"]
    assert written.model.head_dim == model.config.head_dim == 32
    assert tokenizer.get_vocab() == build_tokenizer(role).get_vocab()


@pytest.mark.real
@pytest.mark.parametrize(("name", "role"), MODELS)
def test_the_recipe_of_a_shipped_checkpoint_gives_the_losses_it_records(name, role):
    _, recipe = read_recipe(asset_path(name, role))
    asset, first = str(asset_path(name, role) / "recipe.json"), ["--start"] if "start" in recipe else []
    recorded = recipe["start"] if first else recipe  # what the first one makes is not shipped
    # The first moves of a warm-up do not know how many are to come.
    assert run("--recipe", asset, *first, "out=again", "run.num_updates=10", "eval_problems=0") == 0
    assert read_recipe(Path("again"))[1]["first_losses"] == pytest.approx(recorded["first_losses"][:10], abs=1e-3)


@pytest.mark.real
@pytest.mark.parametrize(("name", "role"), MODELS)
def test_a_shipped_model_is_as_good_as_its_recipe_says(name, role):
    from capo_ray.cli.sft_eval import critic_figures, policy_figures

    measure = policy_figures if role == "policy" else critic_figures
    written, recipe = read_recipe(asset_path(name, role))
    model, tokenizer = load_model(str(asset_path(name, role)))
    figures = measure(written, model, tokenizer)
    assert figures == pytest.approx(recipe["evaluation"], abs=0.05)


@pytest.mark.real
@pytest.mark.parametrize("error_prob, misread_prob", [(0.2, 0.0), (0.0, 0.2)])
def test_the_shipped_critic_sees_wrong_results_and_misread_steps_alike(error_prob: float, misread_prob: float):
    model, tokenizer = load_model(str(asset_path("laptop", "critic")))
    rng, asked = random.Random(1), []
    for index in range(96):
        problem = make_problem(7, index, 6, "held_out")
        asked.append((problem, demonstrate(problem.chain, rng, error_prob, misread_prob)))
    prompts = [critic_prompt(problem.prompt, steps) for problem, steps in asked]
    replies = complete(model, tokenizer, prompts, max_tokens=64, temperature=0.7, top_p=0.9)
    told = [read_incorrect_steps(reply, 7) for reply in replies]
    truth = [true_wrong_steps(problem, steps) for problem, steps in asked]
    assert None not in told
    hits = sum(len(ours & theirs) for ours, theirs in zip(told, truth, strict=True) if ours is not None)
    assert hits > 0.85 * sum(map(len, truth)) and hits > 0.9 * sum(len(ours or ()) for ours in told)


@pytest.mark.parametrize("num_operations", [2, 6, 31])
def test_the_closing_evaluation_waits_for_the_longest_whole_answer(num_operations: int):
    chain = draw_chain(random.Random(0), num_operations, "train")
    shown = demonstrate(chain, random.Random(0), 1.0)
    limit = max_tokens_of(config(eval_steps=num_operations))
    wrong = (*(f"{k}+{k}=" for k in range(10)),) * 4  # steps none of which is right
    texts = {"policy": response_text(shown), "critic": critic_completion(chain, wrong[: num_operations + 1])}
    for role, text in texts.items():
        assert len(build_tokenizer(role).encode(text)) < limit
