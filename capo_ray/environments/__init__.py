r"""Environments: what happens between the policy's turns, and how an episode ended.

    problem -> opening -> engine: n first turns -> [reply -> read -> engine: next turn] x n, each alone -> Played x n
                |                                    |
                +------- Children: a function of (task, what the policy has said) in a killable process

An environment is one function, `reply(task, said) -> Reply`: of the problem and of every turn so far, `said=()` asking
for the opening. It keeps no state, so a process that hung or crashed is replaced and asked again, and nothing is lost;
one that has state (Gymnasium) plays the turns again from its seed. Its section in `config/environment.py` names it, or
an entry point of `capo_ray.environments`: one file of one's own.

    Reply(text, state, done, outcome, reward, legal)       text is what the policy reads; state a key, equal where the
                                                           policy is in the same place (GiGPO); outcome at the end

Invariants
- Token in, token out: a turn's tokens are never encoded again; what is read is encoded alone, as data inside trusted
  words, and stands behind them. `Completion.acted` has the turns.
- A hang, a crash or a refusal is either read by the policy (and its turn changed nothing) or makes the response invalid
  by its key (`environment.on_failure`): never a zero, never a stop of the run. Where no process can be started, groups
  fail, as with any part that is lost.
- One turn is the same path with nobody to reply (`SingleTurn`): what the engine says is the response.
- Every call has a deadline, every response at most `max_turns` turns and `rollout.max_response_tokens` tokens, read
  ones included. An episode cut short is a failed one where the environment tells outcomes, as an answer cut short is.
"""

from capo_ray.environments.build import build_environment, open_environment
from capo_ray.environments.children import Children
from capo_ray.environments.playing import Playing
from capo_ray.environments.reply import Reply, Task
from capo_ray.environments.single import SingleTurn

__all__ = ["Children", "Playing", "Reply", "SingleTurn", "Task", "build_environment", "open_environment"]
