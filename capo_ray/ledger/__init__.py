"""The ledger room: what became of every trajectory, kept through kills and resumes.

    generated -> verified -> critiqued -> credited -> trained in exactly one update
                      \\______________________^
    and from every state but `trained`: -> dropped, with a reason

Invariant: at the end of a run every trajectory ever generated is trained exactly once or dropped with a reason.
"""

from capo_ray.ledger.balance import Balance, read_balance
from capo_ray.ledger.lock import RunBusy, RunLock
from capo_ray.ledger.sqlite import BadMove, LedgerLost, Rewound, SqliteLedger

__all__ = [
    "BadMove",
    "Balance",
    "LedgerLost",
    "Rewound",
    "RunBusy",
    "RunLock",
    "SqliteLedger",
    "read_balance",
]
