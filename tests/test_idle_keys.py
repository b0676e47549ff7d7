"""Keys without effect are refused, each by the rule of its section; a rule that no line here meets fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.cli.eval_settings import compose_eval
from capo_ray.cli.schema import ConfigError, keys_of, train_keys
from capo_ray.cli.sft import read_config
from capo_ray.cli.solve_settings import compose_solve
from capo_ray.cli.useless import idle_rules
from capo_ray.config import CREDIT_METHODS, SftConfig, TrainConfig
from capo_ray.config.base import Section
from capo_ray.config.evaluation import EvalConfig
from capo_ray.config.solve import SolveConfig

SAME_VOTES = "with critic.backend=calculator, whose votes are all the same; remove it or choose another backend"
NO_CRITIQUES = "which reads no critiques; remove it or choose credit=capo"
NO_RESUME = "without resume=RUN: a new run begins at update 0 with the settings given; remove it"
CONSTANT = "with learner.schedule=constant; remove it or choose learner.schedule=cosine"
NO_STAGES = "unless learner.backend=zero; remove one of the two"
NO_ADAPTERS = "with learner.lora.rank=0, which trains the model itself; remove it or set learner.lora.rank"
NO_REFERENCE = (
    "where no reference is held: with loss.kl_coef=0, or beside learner.lora.rank, whose reference is the model "
    "without its adapters; remove it"
)
STATES_ON_CPUS = "on CPUs, where they are in host memory already; remove it or give the learner a GPU"
NO_TRACKER = "without tracking.wandb, tracking.mlflow or tracking.trackio; remove it or choose tracking=wandb"
NO_GPU = "where no actor asks for a GPU; remove it, or choose engine=gpu learner=gpu"
SIZED = (
    "where cluster.address or RAY_ADDRESS names a cluster, which already has its size; remove it, or set "
    "cluster.address=local"
)
NO_ADDRESS = "without a cluster to join: no node comes to one of the run's own; remove it or set cluster.address"
NO_CHAT = "with model.chat_template=false; remove it, or set that to true"
NO_CACHE = "with engine.num_gpus=0; set engine.kv_cache_gib, or give the engine a GPU"
NO_NODES = "without cluster.gpus_per_node; give that too"

# What the user wrote, the last word of it without effect; and the rest of the sentence.
TRAIN = [
    ("run.from_zero=true", NO_RESUME),
    ("run.changes_allowed=[model.path]", NO_RESUME),
    ("model.chat_template_args.x=1", NO_CHAT),
    (
        "credit=etpo credit.turn_discount=0.5",
        "with environment.kind=none, where a response is one turn; remove it or choose an environment",
    ),
    ("steps=turn steps.whole_blocks=true", "with steps=turn, which cuts no text; remove it"),
    (
        "data.path=x.jsonl",
        "with data.kind=chains, which makes its own problems; remove it or choose another data=…",
    ),
    (
        "credit=gigpo data.path=x.jsonl",
        "with data.kind=environment, which makes its own problems; remove it or choose another data=…",
    ),
    ("data=gsm8k data.path=x data.chain_steps=4", "unless data.kind=chains; remove it or choose data=chains"),
    (
        "data.kind=files data.path=/no/such.jsonl data.split=test",
        "where data.path names files, which are all read; remove it, or name a folder of several splits",
    ),
    (
        "data.kind=files data.path=x data.eval_split=test",
        "unless data.eval_path names a data set or a folder of several splits; remove it, or add data.eval_path",
    ),
    (
        "data.kind=files data.path=x data.eval_path=/no/such.jsonl data.eval_split=test",
        "unless data.eval_path names a data set or a folder of several splits; remove it, or add data.eval_path",
    ),
    (
        "data.kind=hub data.path=x data.eval_path=y data.eval_frac=0.2",
        "beside data.eval_path, which names the held-out file; remove one of the two",
    ),
    (
        "data=gsm8k data.path=x critic.flag_unasked=true",
        "unless data.kind=chains or words, whose steps a rule can compare with the question; remove it",
    ),
    ("data.max_steps=3", "unless data.kind=words; remove it or choose data=words"),
    ("data.max_value=20", "unless data.kind=words; remove it or choose data=words"),
    ("data.haystack_size=4", "unless data.kind=haystack; remove it"),
    ("data.number_span=3", "unless data.kind=synthetic; remove it"),
    (
        "data=haystack data.eval_path=x",
        "with data.kind=haystack, which makes its own problems; remove it or choose another data=…",
    ),
    *[
        (
            f"data={kind} data.path=x data.context_column=c",
            "with data.kind=haystack and synthetic, which make their own problems of the rows; remove it",
        )
        for kind in ("haystack", "synthetic")
    ],
    (
        "data=synthetic data.path=x data.solution_column=s",
        "with data.kind=synthetic, which reads worked answers; remove it",
    ),
    ("data=files data.path=x data.evidence_column=e", "without data.context_column; give that too"),
    ("credit=eapo credit.w_evidence=0 credit.scorer=critic", "with credit.w_evidence=0, which asks nobody; remove it"),
    (
        "credit=eapo credit.scorer=critic credit.answer_cue=x",
        "with credit.scorer=critic, or w_evidence=0; remove it, or choose the other scorer",
    ),
    (
        "credit=eapo credit.quorum=2",
        "with credit.scorer=likelihood, or w_evidence=0; remove it, or choose the other scorer",
    ),
    ("data.curriculum.low=0.2", "with data.curriculum.kind=none; add data.curriculum.kind=pass_rate"),
    (
        "data.curriculum.kind=pass_rate data.curriculum.late_low=0.2",
        "with data.curriculum.late_from=1, which never comes to the late band; lower it, or remove this",
    ),
    (
        "engine.gpu_memory_frac=0.5",
        NO_CACHE,
    ),
    ("engine.num_gpus=1 engine.kv_cache_gib=2", "with engine.num_gpus>0; set engine.gpu_memory_frac"),
    ("critic=calculator credit.vote=union", SAME_VOTES),
    ("critic=calculator credit=pure credit.quorum=1", SAME_VOTES),
    ("critic=calculator credit=cliff credit.vote=union", SAME_VOTES),
    (
        "credit=acpo loss.entropy_control=none credit.entropy_frac=0.1",
        "with loss.entropy_control=none, which gives no bonus to share out; remove it or choose a control",
    ),
    (
        "credit=dapo rollout.max_response_tokens=80 credit.overlong_max_tokens=80",
        "with this rollout.max_response_tokens, which no response exceeds; let overlong_max_tokens less "
        "overlong_buffer_tokens be below it",
    ),
    (
        "credit=grpo verifier.kind=custom verifier.path=own.module:check credit.w_format=0.2",
        "with a verifier that is a function, which extracts no answer; remove it or choose another verifier.kind",
    ),
    ("credit=grpo critic.num_votes=8", f"with credit=grpo, {NO_CRITIQUES}"),
    ("credit=grpo critic.num_votes=4", f"with credit=grpo, {NO_CRITIQUES}"),  # its default
    ("credit=grpo critic.endpoint.model=x", f"with credit=grpo, {NO_CRITIQUES}"),
    ("critic.gpu_memory_frac=0.5", "with critic.num_gpus=0; set critic.kv_cache_gib, or give the critic a GPU"),
    ("critic.num_gpus=1 critic.kv_cache_gib=2", "with critic.num_gpus>0; set critic.gpu_memory_frac"),
    ("critic.endpoint.base_url=http://x/v1", "unless critic.backend=endpoint; remove it or choose that backend"),
    ("critic=calculator critic.num_votes=2", SAME_VOTES),
    ("critic=calculator critic.early_stop=true", SAME_VOTES),
    (
        "critic=calculator critic.with_calculator=true",
        "with critic.backend=calculator, which is that vote already; remove it or choose another backend",
    ),
    ("critic.oracle_recall=0.9", "unless critic.backend=oracle; remove it or choose that backend"),
    (
        "critic=oracle critic.oracle_recall=0 critic.oracle_precision=0.9",
        "with critic.oracle_recall=0, which flags nothing; raise that, or remove this",
    ),
    (
        "critic=oracle critic.oracle_wrong_frac=0.3",
        "with critic.oracle_precision=1, which flags no right step; lower that, or remove this",
    ),
    (
        "critic=oracle critic.temperature=1",
        "with critic.backend=oracle, which asks no model; remove it or choose another backend",
    ),
    *[
        (
            f"{given} critic.early_stop=false",
            "with a single vote or an average, which every vote changes; remove it or choose another credit.vote",
        )
        for given in (
            "credit.vote=average",
            "credit=grpo_genorm",
            "critic.num_votes=1",
            "credit.vote=greedy",
            "credit=vppo credit.trust=verdict",
        )
    ],
    (
        "credit=cliff critic=calculator credit.trust=verdict",
        "with critic.backend=calculator, which says nothing of the answer; remove it or choose another backend",
    ),
    (
        "credit=cliff credit.trust=verdict critic.with_calculator=true",
        "with credit.trust=verdict, since a calculator says nothing of the answer; remove one of the two",
    ),
    (
        "critic.with_calculator=true critic.early_stop=true",
        "with critic.with_calculator=true, where all votes are asked for; remove one of the two",
    ),
    (
        "critic.canary_min_recall=0.2",
        "with critic.canary_every=0, which judges no canaries; raise it, or remove this",
    ),
    (
        "critic.trust_file=labelled.jsonl",
        "with critic.min_f1=0, which measures no critic; raise it, or remove this",
    ),
    (
        "critic=endpoint critic.endpoint.parameters=reasoning critic.top_p=0.5",
        "with critic.endpoint.parameters=reasoning, which sends neither; remove it",
    ),
    (
        "critic.temperature=0 critic.top_p=0.5",
        "with critic.temperature=0, which takes the likeliest token; remove it or raise critic.temperature",
    ),
    *[
        (
            f"{given} critic.critique_deadline_s=200",
            "unless it is shorter than critic.deadline_s and the critic is a model; lower it or remove it",
        )
        for given in (
            "critic.deadline_s=200",
            "critic.deadline_s=300 critic.backend=calculator",
            "critic.deadline_s=300 critic.backend=oracle",
        )
    ],
    *[
        (
            f"{given} critic.hedge_after_s=5",
            "unless critic.num_workers>1 and critic.max_retries>0: a second copy goes to another worker",
        )
        for given in ("critic.max_retries=1", "critic.num_workers=2 critic.max_retries=0")
    ],
    (
        "critic.calculator_modulus=10",
        "unless critic.backend=calculator or critic.with_calculator=true; remove it or choose one of them",
    ),
    *[
        (
            f"critic=calculator {key}",
            "unless critic.backend=vllm, which alone holds a model in the cluster; remove it or choose that backend",
        )
        for key in ("critic.model=org/judge", "critic.extra.block_size=64", "critic.placement=colocated")
    ],
    *[
        (
            f"critic=calculator {key}",
            "with critic.backend=calculator, which asks no model; remove it or choose another backend",
        )
        for key in ("critic.show_solution=false", "critic.store=paid.sqlite", "critic.temperature=0.5")
    ],
    *[
        (
            f"credit.vote=greedy {key}",
            "with credit.vote=greedy, which asks once at temperature 0; remove it or choose another vote",
        )
        for key in ("critic.num_votes=8", "critic.temperature=0.5")
    ],
    (
        "loss.correction_low=0.1",
        "with loss.correction=none; remove it or choose a correction",
    ),
    (
        "loss.behaviour=recompute loss.correction=truncate loss.correction_low=0.1",
        "with loss.correction=truncate, which only bounds from above; remove it or choose another correction",
    ),
    (
        "loss.entropy_coef=0.1",
        "with loss.entropy_control=none; add loss.entropy_control=fixed, lica or aer",
    ),
    (
        "loss.entropy_control=lica loss.entropy_coef=0.1 loss.entropy_rate=0.1",
        "unless loss.entropy_control=aer, which alone is steered; remove it or choose that control",
    ),
    (
        "loss.behaviour=recompute learner.num_epochs=1 loss.clip_high=0.3",
        "with loss.behaviour=recompute and learner.num_epochs=1, where every ratio is 1; raise learner.num_epochs",
    ),
    ("loss.covariance_frac=0.1", "with loss.covariance=none; add loss.covariance=clip or kl"),
    (
        "loss.covariance=kl loss.covariance_low=0.1",
        "unless loss.covariance=clip; remove it or choose that control",
    ),
    (
        "loss.covariance=clip loss.covariance_kl_coef=0.1",
        "unless loss.covariance=kl; remove it or choose that control",
    ),
    (
        "credit=acpo credit.stage2_from=1 loss.kl_coef=0.1",
        "with credit.stage2_from=1, which never comes to a second stage; remove it or lower credit.stage2_from",
    ),
    ("learner.schedule=constant learner.min_lr_frac=0.5", CONSTANT),
    ("learner.lora.alpha=8", NO_ADAPTERS),
    ("learner.lora.targets=[q_proj]", NO_ADAPTERS),
    ("weights.adapters=merged", NO_ADAPTERS),
    (
        "learner.offload_reference=true",
        "on CPUs, where the reference is in host memory already; remove it or give the learner a GPU",
    ),
    (
        "learner.num_gpus=1 loss.kl_coef=0 learner.offload_reference=true",
        NO_REFERENCE,
    ),
    (
        "learner.num_gpus=1 loss.kl_coef=0.1 learner.lora.rank=4 learner.offload_reference=true",
        NO_REFERENCE,
    ),
    ("learner.zero_stage=3 learner.offload_states=true", STATES_ON_CPUS),
    (
        "learner.backend=torch learner.zero_stage=1",
        NO_STAGES,
    ),
    (
        "reward_model.lr=1e-3",
        "unless the credit method reads token rewards; remove it or choose credit=prime, istar, qrm or etpo, or "
        "credit=eapo credit.scorer=learned",
    ),
    (
        "credit=etpo reward_model.beta=0.1",
        "unless credit=prime, istar or eapo, whose rewards are log-ratios; remove it or choose one of them",
    ),
    (
        "credit=eapo credit.scorer=learned credit.quorum=2",
        "with credit.scorer=learned, or w_evidence=0; remove it, or choose the other scorer",
    ),
    (
        "credit=prime reward_model.score=sum",
        "unless credit=istar, whose pairs are compared by it; remove it or choose that method",
    ),
    *[
        (key, "unless credit=qrm, whose objective they belong to; remove it or choose that method")
        for key in ("credit=prime reward_model.pair_margin=1", "credit=etpo reward_model.head=language_model")
    ],
    (
        "weights.canary_every=0 weights.canary_tolerance=0.1",
        "with weights.canary_every=0, which never compares; remove one of the two",
    ),
    (
        "weights.transport=host weights.bucket_mib=8",
        "with weights.transport=host, which sends no buckets; name gloo or nccl, or remove it",
    ),
    (
        "weights.delta_frac=0.2",
        "with weights.transport=auto, which sends no buckets; name gloo or nccl, or remove it",
    ),
    ("tracking.project=mine", NO_TRACKER),
    ("cluster.address=auto cluster.num_cpus=4", SIZED),
    ("cluster.wait_s=60", NO_ADDRESS),
    ("engine.num_gpus=1 cluster.num_nodes=2", NO_NODES),
    ("cluster.gpus_per_node=8", NO_GPU),
]
OF_CHAINS = "with other data than chains; it is read with data.kind=chains"
FILES = "data.kind=jsonl data.path=/no/such.jsonl model.path=laptop"
ON_RAY = "learner.backend=zero"
WITHOUT_RAY = "with learner.backend=torch, which trains in this process without Ray; add learner.backend=zero"
SFT = [
    ("run.from_zero=true", NO_RESUME),
    (
        "model.path=laptop model.num_layers=2",
        "with model.path, whose model has its sizes; remove one of the two",
    ),
    ("model.chat_template=true", "with data.kind=chains, whose prompts have a form of their own; set data.kind"),
    *[
        (f"{kind} data.split=test", "with data that are made on the spot, and read from no file; set data.kind")
        for kind in ("data.kind=chains", "data.kind=words data.max_steps=4 model.path=laptop")
    ],
    (f"{FILES} model.chat_template_args.x=1", NO_CHAT),
    (
        f"{FILES} data.split=test",
        "where data.path names files, which are all read; remove it, or name a folder of several splits",
    ),
    (f"{FILES} data.min_steps=2", "with data of files; it is read with data.kind=chains and words"),
    (f"{FILES} data.max_value=20", "unless data.kind=words; remove it or choose data=words"),
    (f"{FILES} eval_steps=3", OF_CHAINS),
    (f"{FILES} data.role=critic", OF_CHAINS),
    *[
        (
            f"{given} data.error_prob=0.1",
            "where no chains of a policy are taught; it is read with data.kind=chains data.role=policy",
        )
        for given in ("data.role=critic", FILES)
    ],
    *[
        (
            f"{given} data.unlearnt_frac=0.1",
            "where no made problems are solved; it is read with data.kind=words, or chains and data.role=policy",
        )
        for given in ("data.role=critic", FILES)
    ],
    *[
        (f"{given} data.carried=false", "where no critic is taught; it is read with data.kind=chains data.role=critic")
        for given in ("data.role=policy", FILES)
    ],
    ("learner.schedule=constant learner.min_lr_frac=0.2", CONSTANT),
    ("learner.backend=fsdp learner.zero_stage=3", NO_STAGES),
    ("learner.backend=fsdp learner.offload_states=true", STATES_ON_CPUS),
    ("learner.lora.alpha=8", NO_ADAPTERS),
    ("learner.zero_stage=1", WITHOUT_RAY),
    ("cluster.address=auto", WITHOUT_RAY),
    ("tracking.project=mine", NO_TRACKER),
    (f"{ON_RAY} cluster.address=auto cluster.num_cpus=4", SIZED),
    (f"{ON_RAY} cluster.wait_s=60", NO_ADDRESS),
    (f"{ON_RAY} learner.num_gpus=1 cluster.num_nodes=2", NO_NODES),
    (f"{ON_RAY} cluster.gpus_per_node=8", NO_GPU),
    ("eval_policy=laptop", "where no critic is taught; it is read with data.kind=chains data.role=critic"),
    ("eval_problems=0 eval_steps=3", "with eval_problems=0, which leaves the closing evaluation out"),
]
EVAL = [
    (
        "endpoint.base_url=http://h/v1 endpoint.model=m engine.max_num_seqs=8",
        "with endpoint.base_url, whose engines are its own; remove it",
    ),
    ("endpoint.max_in_flight=8", "without endpoint.base_url; set it too"),
    ("engine.seeded=false", "in an evaluation, which is always seeded; remove it"),
    ("eval.temperature=0 eval.top_p=0.9", "with eval.temperature=0, where every response is greedy; remove it"),
    ("model.chat_template=false model.chat_template_args.x=1", NO_CHAT),
    ("engine.gpu_memory_frac=0.5", NO_CACHE),
    ("engine.num_gpus=1 engine.kv_cache_gib=2", "with engine.num_gpus>0; set engine.gpu_memory_frac"),
    ("cluster.address=auto cluster.num_cpus=4", SIZED),
    ("cluster.wait_s=60", NO_ADDRESS),
    ("engine.num_gpus=1 cluster.num_nodes=2", NO_NODES),
    ("cluster.gpus_per_node=8", NO_GPU),
]
SOLVE = [  # what it shares with a run and an evaluation is met there
    ("engine.seeded=false", "in a search, which is always seeded; remove it"),
    ("critic.show_solution=false", "in a search, whose critic never sees the solution; remove it"),
    ("search=sample critic.num_votes=2", "with search=sample, which asks no critic; remove it or choose another"),
    (
        "search=majority steps.segmenter=newline",
        "with search=majority, which asks no critic; remove it or choose another",
    ),
    ("steps.whole_blocks=false", "with search=navigator, which cuts at each delimiter as it is written; remove it"),
    ("eval.question=x eval.limit=3", "beside eval.question, the one question that is asked; remove one of the two"),
    (
        "search=sample search.temperature=0 search.top_p=0.9",
        "with search.temperature=0, which takes the likeliest token; remove it or raise search.temperature",
    ),
    ("cluster.gpus_per_node=8", NO_GPU),
]
COMPOSE: dict[type[Section], Callable[[list[str]], Section]] = {
    TrainConfig: compose_train,
    SftConfig: read_config,
    EvalConfig: compose_eval,
    SolveConfig: compose_solve,
}
TABLE = [(job, *line) for job, lines in zip(COMPOSE, (TRAIN, SFT, EVAL, SOLVE), strict=True) for line in lines]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def refusal(job: type[Section], given: str) -> str:
    with pytest.raises(ConfigError) as caught:
        COMPOSE[job](given.split())
    return str(caught.value)


@pytest.mark.parametrize("job, given, why", TABLE)
def test_a_key_without_effect_is_refused_with_its_reason(job: type[Section], given: str, why: str) -> None:
    assert refusal(job, given) == f"{given.split()[-1].partition('=')[0]} has no effect {why}"


def test_a_choice_is_refused_where_its_whole_section_is_idle() -> None:
    assert (
        refusal(TrainConfig, "credit=grpo critic=calculator")
        == f"critic=… has no effect with credit=grpo, {NO_CRITIQUES}"
    )
    assert refusal(TrainConfig, "credit=grpo critic=org/judge").startswith("critic.model has no effect")


def declared() -> Iterator[tuple[Section, str, tuple[str, ...], str]]:
    """Each rule of each section of any run: the run, what its keys begin with, the keys and the reason."""
    runs: list[Section] = [SftConfig(), EvalConfig()]
    runs += [compose_train([f"credit={method}"]) for method in CREDIT_METHODS]
    for run in runs:
        yield from ((run, path, rule.keys, rule.reason) for path, rule in idle_rules(run))


def test_every_rule_is_met_by_a_line_of_the_table() -> None:
    """A rule is known by its job, its section and its sentence (which may name the method)."""
    for run, path, keys, reason in declared():
        method = f"credit={run.credit.method}" if isinstance(run, TrainConfig) else "no method"
        names = tuple(f"{path}{key}" for key in keys)
        met = any(
            isinstance(run, job)
            and given.split()[-1].startswith(names)
            and why.replace("credit=grpo,", f"{method},") == reason
            for job, given, why in TABLE
        )
        assert met, f"{path}{keys[0]} has no effect {reason}: no line of the table meets this rule"


def test_the_rules_name_keys_that_exist() -> None:
    for run, path, names, _ in declared():
        keys = keys_of(type(run))
        if isinstance(run, TrainConfig):
            keys = train_keys({"credit": run.credit.method, "steps": run.steps.segmenter})
        for name in names:
            whole = f"{path}{name}"
            assert whole in keys or any(key.startswith(f"{whole}.") for key in keys), whole


@pytest.mark.parametrize(
    "given",
    [
        "credit=dapo credit.overlong_max_tokens=90 credit.overlong_buffer_tokens=20",
        "credit=dapo credit.overlong_max_tokens=0",
        "credit=acpo loss.entropy_rate=0.1 credit.answer_cue=so data.curriculum.low=0.2 loss.kl_coef=0.1",
        "loss.behaviour=recompute loss.clip_high=0.3 loss.covariance=kl",
        "critic.early_stop=false critic.canary_every=9 critic.canary_min_recall=0.2 critic.top_p=0.5",
        "critic.num_workers=2 critic.hedge_after_s=5 critic.critique_deadline_s=60",
        "credit=prime reward_model.lr=1e-3 reward_model.beta=0.1",
        "credit=qrm reward_model.pair_margin=1",
        "credit=prime loss.kl_coef=0 learner.num_gpus=1 learner.offload_reference=true",
        "learner.num_gpus=1 learner.backend=fsdp learner.offload_states=true",
        "cluster.address=auto cluster.wait_s=60",
        "data.kind=hub data.path=x data.split=test data.eval_path=x data.eval_split=test",
        "experiment=paper_1_5b credit=grpo",  # what is idle there is the preset's
    ],
)
def test_a_key_with_an_effect_is_taken(given: str) -> None:
    compose_train(given.split())


def test_which_keys_of_the_cluster_are_idle_is_said_of_the_one_that_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert compose_train([]).cluster.joined == "10.0.0.1:6379"
    for key in ("cluster.num_cpus", "cluster.object_store_mib"):
        assert refusal(TrainConfig, f"{key}=9") == f"{key} has no effect {SIZED}"
    compose_train(["cluster.wait_s=60"])
    for own in ("cluster=own", "cluster.address=local"):
        assert compose_train([own, "cluster.num_cpus=4", "cluster.object_store_mib=300"]).cluster.joined == ""
        assert refusal(TrainConfig, f"{own} cluster.wait_s=60") == f"cluster.wait_s has no effect {NO_ADDRESS}"
    monkeypatch.setenv("RAY_ADDRESS", "local")  # as Ray reads it
    assert compose_train(["cluster.num_cpus=4"]).cluster.joined == ""


def test_a_folder_has_splits_to_choose_from(tmp_path: Path) -> None:
    compose_train(["data.kind=files", f"data.path={tmp_path}", "data.split=test"])
