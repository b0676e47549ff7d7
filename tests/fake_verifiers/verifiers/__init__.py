"""What the adapter uses of the package `verifiers`, with its names and its order of calls as in 0.3.1: for machines
without it. `tests/test_environments_verifiers.py` asks the same of the real one where it is installed.
"""

import asyncio
import logging
from importlib import import_module


class Error(Exception):
    """An error of an environment, which ends the rollout."""


def stop(method):
    method.stop = True
    return method


class Client:
    def __init__(self, config):
        self._client = config

    @property
    def client(self):
        return self._client


class Rubric:
    def __init__(self, funcs=(), weights=None):
        self.funcs, self.weights = list(funcs), weights or [1.0] * len(funcs)

    async def score_rollout(self, state):
        scores = []
        for func in self.funcs:
            try:
                scores.append(float(func(completion=state["completion"], answer=state["answer"])))
            except Exception as error:
                logging.getLogger("verifiers.rubrics.rubric").error(f"Error calling {func.__name__}: {error}")
                scores.append(0.0)
        state["reward"] = sum(w * s for w, s in zip(self.weights, scores, strict=True))

    async def cleanup(self, state):
        """Nothing."""


class RubricGroup(Rubric):
    def __init__(self, rubrics):
        super().__init__()
        self.rubrics = rubrics


class JudgeRubric(Rubric):
    """Would ask a model."""

    def __init__(self, judge_client):
        super().__init__()


class Environment:
    def __init__(self, dataset, eval_dataset=None, system_prompt="", rubric=None, message_type="chat", tool_defs=None):
        self.message_type, self.tool_defs, self.rubric = message_type, tool_defs, rubric or Rubric()
        self.requires_group_rollouts = False
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._rows = [
            rows and [{"prompt": [*system, {"role": "user", "content": row["question"]}], **row} for row in rows]
            for rows in (dataset, eval_dataset)
        ]

    def build_dataset(self):
        return self._rows[0]

    def build_eval_dataset(self):
        return self._rows[1]

    get_dataset, get_eval_dataset = build_dataset, build_eval_dataset

    async def get_model_response(self, state, prompt):
        return await state["client"].get_response(prompt=prompt, model="policy", sampling_args={}, state=state)


class MultiTurnEnv(Environment):
    def __init__(self, max_turns=-1, timeout_seconds=None, **kwargs):
        super().__init__(**kwargs)
        self.max_turns, self.timeout_seconds = max_turns, timeout_seconds

    async def setup_state(self, state):
        return state

    async def _is_completed(self, state):
        if state["error"] or 0 < self.max_turns <= len(state["trajectory"]):
            return True
        methods = (getattr(self, name) for name in dir(type(self)))
        return any([await method(state) for method in methods if hasattr(method, "stop")])

    async def rollout(self, input, client, model, sampling_args=None):
        types = import_module("verifiers.types")
        prompt = [types.Message(**message) for message in input["prompt"]]
        state = {**input, "prompt": prompt, "client": client, "trajectory": [], "error": None}
        state = await self.setup_state(state) or state
        state["messages"] = state["prompt"]
        try:
            await asyncio.wait_for(self._turns(state), self.timeout_seconds)
        except TimeoutError:
            state["timed_out"] = True
        state["completion"] = state["messages"][len(state["prompt"]) :]
        return state

    async def _turns(self, state):
        types = import_module("verifiers.types")
        while not await self._is_completed(state):
            try:
                messages = state["messages"]
                if state["trajectory"]:
                    said = await self.env_response(messages, state)
                    messages = [*messages, *(types.Message(**message) for message in said)]
                response = await self.get_model_response(state, messages)
                turn = types.Message("assistant", response.message.content)
                state["messages"] = [*messages, turn]
                state["trajectory"].append({"completion": [turn]})
            except Error as error:
                state["error"] = error


def load_environment(env_id, **args):
    return import_module(env_id.replace("-", "_")).load_environment(**args)
