"""The closing evaluation of `capo-ray sft` in the laptop world, where the truth of every step is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from capo_ray.config.sft import SftConfig
from capo_ray.learners.recipe import load_model
from capo_ray.problems import asset_path
from capo_ray.problems.chains import ChainProblem, make_problem, shown_answer, split_steps, true_wrong_steps
from capo_ray.problems.chains_lessons import critic_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TOKENS_PER_STEP = 10
"""Enough for a step of the policy (6), and for what a critic writes of one (3 and, when it is wrong, 3 more)."""


def held_out_chains(config: SftConfig) -> list[ChainProblem]:
    """The problems of the closing evaluation."""
    return [make_problem(0, index, config.eval_steps, "held_out") for index in range(config.eval_problems)]


def max_tokens_of(config: SftConfig) -> int:
    """The longest completion that the closing evaluation waits for."""
    return max(128, TOKENS_PER_STEP * (config.eval_steps + 2))


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """One completion text per prompt; temperature 0 is greedy."""
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    asked = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        ids = model.generate(
            asked.input_ids,
            attention_mask=asked.attention_mask,
            max_new_tokens=max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **drawn,
        )
    texts: list[str] = tokenizer.batch_decode(ids[:, asked.input_ids.shape[1] :], skip_special_tokens=True)
    return texts


def evaluate(config: SftConfig, model_path: Path) -> dict[str, float]:
    """The closing figures of a model on held-out chains; empty for other data."""
    if config.data.kind != "chains" or not config.eval_problems:
        return {}
    figures = policy_figures if config.data.role == "policy" else critic_figures
    return figures(config, *load_model(str(model_path)))


def policy_figures(config: SftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Accuracy of answers (greedy, sampled at temperature 1) and of sampled steps."""
    problems, limit = held_out_chains(config), max_tokens_of(config)
    prompts = [f"{problem.prompt}\n" for problem in problems]
    sampled = complete(model, tokenizer, prompts, max_tokens=limit, temperature=1.0)
    greedy = complete(model, tokenizer, prompts, max_tokens=limit, temperature=0.0)
    steps = [split_steps(text) for text in sampled]
    num_wrong = sum(len(true_wrong_steps(p, s)) for p, s in zip(problems, steps, strict=True))
    return {
        "sampled_accuracy": _answer_accuracy(problems, sampled),
        "greedy_accuracy": _answer_accuracy(problems, greedy),
        "sampled_step_accuracy": 1 - num_wrong / sum(len(s) for s in steps),
    }


def critic_figures(config: SftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Step precision and recall of one critique (temperature 0.7, top-p 0.9) on samples of the policy."""
    from capo_ray.problems.chains_lessons import read_incorrect_steps

    policy, policy_tokenizer = load_model(str(asset_path(config.eval_policy, "policy")))
    problems, limit = held_out_chains(config), max_tokens_of(config)
    texts = complete(policy, policy_tokenizer, [f"{p.prompt}\n" for p in problems], max_tokens=limit, temperature=1.0)
    steps = [split_steps(text) for text in texts]
    prompts = [critic_prompt(p.prompt, s) for p, s in zip(problems, steps, strict=True)]
    replies = complete(model, tokenizer, prompts, max_tokens=limit, temperature=0.7, top_p=0.9)
    hits = flagged = wrong = invalid = exact = 0
    for problem, shown, reply in zip(problems, steps, replies, strict=True):
        truth, told = true_wrong_steps(problem, shown), read_incorrect_steps(reply, len(shown))
        if told is None:
            invalid += 1
            continue
        hits, flagged, wrong, exact = (
            hits + len(truth & told), flagged + len(told), wrong + len(truth), exact + (truth == told)
        )  # fmt: skip
    return {
        "step_precision": hits / max(1, flagged),
        "step_recall": hits / max(1, wrong),
        "invalid_frac": invalid / len(problems),
        "exact_frac": exact / len(problems),
    }


def _answer_accuracy(problems: list[ChainProblem], texts: list[str]) -> float:
    right = sum(shown_answer(text) == problem.answer for problem, text in zip(problems, texts, strict=True))
    return right / len(problems)
