"""Supervised training: what carries loss, what the gradient depends on, the command, and the shipped checkpoints."""

from __future__ import annotations

import argparse
import json
import math
import random
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch

from capo_ray.cli import sft
from capo_ray.cli.sft_eval import complete, max_tokens_of
from capo_ray.config.sft import SftConfig, SftModelConfig
from capo_ray.learners.recipe import load_model, model_from_scratch, read_recipe
from capo_ray.learners.supervised import (
    Example,
    lr_scale,
    microbatches,
    pad_examples,
    sample_completions,
    supervised_updates,
    train_supervised,
)
from capo_ray.problems import asset_path
from capo_ray.problems.chains import demonstrate, draw_chain, make_problem, response_text, true_wrong_steps
from capo_ray.problems.chains_lessons import critic_completion, critic_prompt, read_incorrect_steps
from capo_ray.problems.chains_tokenizer import build_tokenizer
from capo_ray.protocols import RunFailed
from capo_ray.written import sha256

SIZES = SftModelConfig(hidden_size=32, num_layers=1, num_heads=1, intermediate_size=32)
EXAMPLES = [Example(tuple(range(4, 4 + n)), p) for n, p in ((5, 2), (9, 4), (7, 1), (12, 11))]


def small_model(seed: int = 0) -> torch.nn.Module:
    return model_from_scratch(SIZES, build_tokenizer("policy"), seed)


def config(**more: object) -> SftConfig:
    return SftConfig(**{"num_updates": 4, "batch_size": 4, "warmup_updates": 1, **more})


def run(*overrides: str) -> int:
    parser = argparse.ArgumentParser()
    sft.configure(parser)
    return sft.run(parser.parse_args(list(overrides)))


def test_only_completion_tokens_carry_loss():
    input_ids, weights = pad_examples(EXAMPLES[:2], 0.0)
    assert input_ids[0].tolist() == [4, 5, 6, 7, 8, 0, 0, 0, 0]
    assert weights.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1]]
    assert pad_examples(EXAMPLES[:1], 0.5)[1].tolist() == [[0.5, 0.5, 1, 1, 1]]


def test_the_first_loss_is_the_mean_nats_of_the_completion_tokens():
    model = small_model()
    logprobs = []
    for example in EXAMPLES:
        rows = torch.log_softmax(model(input_ids=torch.tensor([example.token_ids])).logits[0], -1)
        logprobs += [
            rows[t - 1, example.token_ids[t]].item() for t in range(example.num_prompt_tokens, len(example.token_ids))
        ]
    loss = next(supervised_updates(small_model(), cycle(EXAMPLES), config()))
    assert loss == pytest.approx(-sum(logprobs) / len(logprobs), abs=1e-5)


def test_microbatches_do_not_change_the_training():
    whole = train_supervised(small_model(), cycle(EXAMPLES), config())
    cut = train_supervised(small_model(), cycle(EXAMPLES), config(microbatch_tokens=10))
    assert len(microbatches(EXAMPLES, 10)) == 4
    assert len(microbatches(EXAMPLES, 18)) == 3
    assert whole == pytest.approx(cut, abs=1e-5)


def test_training_lowers_the_loss_and_reports_each_update():
    told = []
    losses = train_supervised(
        small_model(),
        cycle(EXAMPLES),
        config(num_updates=30, learning_rate=1e-2),
        lambda update, loss: told.append((update, loss)),
    )
    assert told == list(enumerate(losses, 1))
    assert losses[-1] < 0.5 * losses[0]


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    c = config(num_updates=110, warmup_updates=10, min_lr_frac=0.1)
    assert [lr_scale(u, c) for u in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert lr_scale(60, c) == pytest.approx(0.55)
    assert lr_scale(110, c) == pytest.approx(0.1)


def test_a_loss_that_is_not_finite_ends_the_training():
    model = small_model()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(RunFailed, match="the loss of update 0 is nan"):
        train_supervised(model, cycle(EXAMPLES), config())


def test_too_few_examples_end_the_training():
    with pytest.raises(RunFailed, match="expected 4 examples for update 1, got 2"):
        train_supervised(small_model(), iter([*EXAMPLES, *EXAMPLES[:2]]), config())


def test_sampling_in_batches_equals_greedy_decoding_one_by_one():
    model = small_model().eval()
    prompts = [[5, 6, 7], [8, 9], [7, 6, 5], [9]]
    together = sample_completions(model, prompts, eos_id=1, max_tokens=6, temperature=0.0)
    for prompt, completion in zip(prompts, together, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6:
            chosen = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if chosen == 1:
                break
            ids.append(chosen)
        assert completion == ids[len(prompt) :]


def test_the_nucleus_leaves_out_what_lies_beyond_its_mass():
    from capo_ray.learners.supervised import _choose

    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(2000, 3)
    drawn = _choose(logits, 1.0, 0.7, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 1}
    assert (drawn == 0).float().mean().item() == pytest.approx(2 / 3, abs=0.04)


def test_the_command_trains_from_a_directory_on_jsonl_and_keeps_its_recipe(tmp_path: Path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    sizes = [f"model.{name}={value}" for name, value in SIZES.model_dump().items() if name != "path"]
    assert run(f"out={first}", "num_updates=2", "batch_size=4", "eval_problems=4", *sizes) == 0
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"prompt": f"{k}+1", "response": f"{k + 1}"}) + "\n" for k in range(5)))
    overrides = (f"model.path={first}", "data.kind=jsonl", f"data.path={lines}", "num_updates=3", "batch_size=4")
    assert run(f"out={second}", *overrides) == 0
    written, recipe = read_recipe(second)
    assert written.data.path == str(lines)
    assert len(recipe["first_losses"]) == 3
    assert recipe["start"] == read_recipe(first)[1]
    assert sft.read_config(["out=x"], str(second / "recipe.json"), start=True).num_updates == 2
    assert run(f"--recipe={first / 'recipe.json'}", "--start", "out=x") == 2
    assert "expected --recipe of a model that was started from another" in capsys.readouterr().err
    assert recipe["sha256"] == {"model.safetensors": sha256(second / "model.safetensors")}
    before, _ = load_model(str(first))
    after, tokenizer = load_model(str(second))
    assert not torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    assert tokenizer.eos_token_id == 1
    assert run(f"out={second}", *overrides) == 1
    assert "to be new or empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "code", "sentence"),
    [
        (["learning_rat=1"], 2, "learning_rat: Extra inputs are not permitted"),
        (["learning_rate=0"], 2, "learning_rate"),
        (["nonsense"], 2, "expected key=value, got 'nonsense'"),
        (["data.kind=jsonl"], 2, "data.kind=jsonl needs data.path"),
        (["data.min_steps=9"], 2, "data.min_steps must be <= data.max_steps"),
        (["data.role=critic", "eval_policy=/no/such/model"], 1, "got '/no/such/model'"),
        (["model.path=/no/such/model"], 1, "expected a Hugging Face model directory or hub name, got '/no/such/model'"),
        (["data.kind=jsonl", "data.path=/no/such.jsonl", f"model.path={asset_path('laptop', 'policy')}"], 1, "no file"),
    ],
)
def test_bad_options_get_a_sentence_and_an_exit_code(overrides, code, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(f"out={tmp_path / 'out'}", *overrides) == code
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recipe_can_be_cooked_again_with_overrides_on_top():
    recipe = asset_path("laptop", "critic") / "recipe.json"
    again = sft.read_config(["out=elsewhere", "model.num_layers=5"], str(recipe))
    written, _ = read_recipe(recipe.parent)
    assert (again.out, again.model.num_layers) == ("elsewhere", 5)
    assert (again.learning_rate, again.model.hidden_size) == (written.learning_rate, written.model.hidden_size)
    with pytest.raises(ValueError, match=r"expected the recipe.json of a model directory, got /no/such.json"):
        sft.read_config([], "/no/such.json")


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_the_shipped_weights_are_those_of_their_recipe(role):
    directory = asset_path("laptop", role)
    written, recipe = read_recipe(directory)
    assert recipe["sha256"] == {"model.safetensors": sha256(directory / "model.safetensors")}
    model, tokenizer = load_model(str(directory))
    assert len(tokenizer) == model.config.vocab_size == len(build_tokenizer(role))
    assert sum(p.numel() for p in model.parameters()) == recipe["num_parameters"]
    assert written.model.head_dim == model.config.head_dim == 32
    assert tokenizer.get_vocab() == build_tokenizer(role).get_vocab()


@pytest.mark.real
@pytest.mark.parametrize("role", ["policy", "critic"])
def test_the_recipe_of_a_shipped_checkpoint_gives_the_losses_it_records(role):
    _, recipe = read_recipe(asset_path("laptop", role))
    while "start" in recipe:  # what the first one makes is not shipped
        recipe = recipe["start"]
    written = SftConfig.model_validate(recipe["config"])
    model, tokenizer = sft.build_start(written)
    losses = supervised_updates(model, sft.lesson_examples(written, tokenizer), written)
    assert list(islice(losses, 10)) == pytest.approx(recipe["first_losses"][:10], abs=1e-3)


@pytest.mark.real
def test_the_shipped_policy_and_critic_are_as_good_as_their_recipes_say():
    from capo_ray.cli.sft_eval import critic_figures, policy_figures

    for role, measure in (("policy", policy_figures), ("critic", critic_figures)):
        written, recipe = read_recipe(asset_path("laptop", role))
        model, tokenizer = load_model(str(asset_path("laptop", role)))
        figures = measure(written.model_copy(update={"eval_policy": "laptop"}), model, tokenizer)
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
