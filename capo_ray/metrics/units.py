"""What the last word of a figure's name says."""

UNITS = {
    "frac": "share, 0 to 1",
    "s": "seconds",
    "nats": "nats",
    "tokens": "tokens",
    "mib": "MiB",
    "total": "how many since the start; after `s`: seconds since the start",
    "mean": "a mean",
    "max": "the largest",
    "corr": "correlation, -1 to 1",
    "norm": "Euclidean norm",
    "rate": "factor of a gradient",
    "coef": "factor of a loss term",
    "ratio": "a quotient",
    "alarm": "1 where it rings, else 0",
    "response": "`…_per_response`: how many for each response",
    "critique": "`…_per_critique`: how many for each answer of a critic",
    "updates": "updates behind a set of weights",
    "": "other words: how many of these there are, now or this time",
}
COUNTED = frozenset(
    ("calls", "groups", "lanes", "microbatches", "pairs", "problems", "requests", "responses", "trackers", "workers")
)
