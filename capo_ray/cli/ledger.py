"""`capo-ray ledger RUN`: the account of a run's trajectories, also while it is going on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from capo_ray.ledger import Balance, read_balance
from capo_ray.runs.layout import LEDGER_FILE

HELP = "account for every trajectory of a run: counts per state, reasons of drops, balanced or not"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the example."""
    parser.epilog = (
        f"{parser.epilog}\n\n"
        "exit codes: 0 balanced; 1 not balanced (a run that is going on has open trajectories) or damaged; "
        "2 no ledger there"
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory, or a ledger file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 when every trajectory is trained once or dropped with a reason, 1 when not or damaged, 2 when there is none."""
    path: Path = args.run / LEDGER_FILE if args.run.is_dir() else args.run
    try:
        balance = read_balance(path)
    except (OSError, ValueError) as error:
        print(f"capo-ray ledger: {error}", file=sys.stderr)
        return 2
    print(json.dumps(balance.to_dict(), indent=2) if args.json else _to_text(balance))
    return 0 if balance.balanced else 1


def _to_text(balance: Balance) -> str:
    lines = [f"{state:<12}{count:>10}" for state, count in balance.counts.items()]
    lines += [f"  {count:>8}  critiqued ({votes} valid)" for votes, count in balance.votes.items()]
    lines += [f"  {count:>8}  {reason}" for reason, count in balance.reasons.items()]
    lines.append(f"{sum(balance.counts.values())} trajectories, {balance.updates} updates")
    if balance.masked_tokens:
        lines.append(f"{balance.masked_tokens} tokens of the trained ones were too old and had no weight")
    if balance.damaged is None:
        lines.append("no row has a digest (an older capo-ray wrote it): damage that still balances cannot be seen")
    elif balance.damaged:
        shown = [*balance.damaged[:10], *(["and more"] if len(balance.damaged) > 10 else [])]
        lines += [
            f"DAMAGED, {len(balance.damaged)} rows are not as they were written; put the file back from a copy:",
            *(f"  {name}" for name in shown),
        ]
    if balance.balanced:
        lines.append("balanced: every trajectory is trained in exactly one update or dropped with a reason")
    elif not balance.damaged:
        lines.append(f"NOT balanced: {balance.open} open, {balance.trained_twice} trained twice")
    return "\n".join(lines)
