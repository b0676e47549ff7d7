"""Where the parts run: Ray actors, their supervision, and the launch of a run. The only room that knows Ray.

    driver                      actors
    train.run ── flow.Pipeline ── RolloutPool  -> RolloutWorker x n   (engines.VllmEngine)
                              ├── CriticPool   -> CriticWorker  x n   (engines.VllmEngine + critics.Judge)
                              ├── VerifierTier -> VerifierWorker x n  (verifiers.VerifierPool: killable children)
                              └── LearnerActors-> LearnerRank   x n   (learners.Learner: DeepSpeed ZeRO)
    sft.run ── flow.Supervised ── the same LearnerActors, or learners.LearnerAlone in the driver

Each role is one file of `roles`: worker, pool or group, and their making; `actors.ROLES` is the list of them.
A call to an actor has a deadline; a dead or hung actor is replaced and its calls are sent again elsewhere.
"""
