"""The shipped pipeline in one process, for benchmarks of learning and credit. No Ray, no vLLM, no DeepSpeed.

model     Qwen3 on bare tensors               sampling  many continuations of shared prefixes at once
engine    the door TextEngine over both       learner   the doors LearnerGroup and RewardModel over the shipped learners
critics   the door Judge, for controls        parts     a run's parts: these, and everything else as it ships
arms      overrides, by name                  run       one arm under training
planted   responses whose errors are known, walked through the shipped GroupWay
"""
