"""The laptop world in plain torch, in one process: what the learning benchmarks share. No Ray, no vLLM, no DeepSpeed.

model     Qwen3 on bare tensors          sampling   many continuations of shared prefixes at once
world     problems, votes, groups        learner    the project's loss on the project's samples
"""
