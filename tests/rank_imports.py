"""What every rank of a test imports, once for all of them: see `rank_pair`."""

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"
gc.disable()  # what is imported lives on

import deepspeed  # noqa: E402, F401
import transformers.models.auto.modeling_auto  # noqa: E402
import transformers.models.qwen3.modeling_qwen3  # noqa: E402, F401

import tests.reward_group  # noqa: E402, F401  # and with it all that ranks are told to do

gc.enable()
gc.freeze()
