"""What the stories of word problems are made of: scenes, and the parts that tell them.

A part has sentences that say the same, and the steps that it adds. `{a}`, `{b}`, `{c}` are numbers of the part, `{x}`
is what the story counts, `{N}` whom it is about, `{F}` a friend, `{P}` and `{Q}` the next person and the one before,
`{t}` a thing. A step reads `{x} - {b} = [x]`: its result is the new x. All numbers stand in the question as digits;
"twice" alone is a 2 in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIN_VALUE, MAX_VALUE = 2, 100
"""Between these, both included, are all numbers of a story, unless it is told of smaller ones."""
SMALL: tuple[int, int] = (2, 9)
"""What a number is drawn from where its part says nothing."""
_MEDIUM, _LARGE = (3, 25), (10, MAX_VALUE)


@dataclass(frozen=True, slots=True)
class Part:
    """Sentences that say the same, and the steps that they ask for; numbers are drawn from `ranges`, or small."""

    says: tuple[str, ...]
    steps: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """Openings that set x, events that change it, endings that ask; `things` are what it may be about."""

    openings: tuple[Part, ...]
    events: tuple[Part, ...]
    endings: tuple[Part, ...]
    things: tuple[str, ...] = ("",)


_GIVE = Part(
    ("{He} gives {b} {t} to {F}.", "{b} {t} get lost.", "Then {F} takes {b} {t}.", "{He} sells {b} {t}."),
    ("{N} has {x} - {b} = [x] {t} left.",),
    {"b": _MEDIUM},
)
_FIND = Part(
    ("{He} finds {b} more {t}.", "Then {F} gives {him} {b} {t}.", "{He} gets {b} {t} as a present."),
    ("{N} has {x} + {b} = [x] {t}.",),
    {"b": _MEDIUM},
)
_PACKS = Part(
    ("{He} buys {a} packs of {b} {t} each.", "{F} brings {him} {a} bags with {b} {t} in each."),
    ("They hold {a} * {b} = [y] {t}.", "{N} has {x} + {y} = [x] {t}."),
)
_BOX_EVENTS = Part(
    ("{He} fills {a} jars with {b} {t} each and gives them away.", "{a} friends get {b} {t} each from {him}."),
    ("That is {a} * {b} = [y] {t}.", "{N} has {x} - {y} = [x] {t} left."),
)

THINGS = Scene(
    openings=(
        Part(("{N} has {a} {t}.", "There are {a} {t} in {N}'s room."), (), {"a": _LARGE}),
        Part(
            ("{N} has {a} boxes with {b} {t} in each.", "{N} owns {a} bags of {b} {t} each."),
            ("{N} has {a} * {b} = [x] {t}.",),
        ),
        Part(
            ("{N} has {a} red {t} and {b} blue {t}.", "{N} collects {a} {t} in May and {b} {t} in June."),
            ("{N} has {a} + {b} = [x] {t}.",),
            {"a": _MEDIUM, "b": _MEDIUM},
        ),
    ),
    events=(_GIVE, _FIND, _PACKS, _BOX_EVENTS),
    endings=(
        Part(("How many {t} does {N} have now?", "How many {t} does {he} have in the end?")),
        Part(
            (
                "{He} shares all {t} equally among {c} friends. How many {t} does each friend get?",
                "{He} puts all {t} into {c} boxes, the same number in each. How many {t} are in a box?",
            ),
            ("Each gets {x} / {c} = [x] {t}.",),
        ),
        Part(
            ("{F} has {c} {t}. How many {t} do they have together?",),
            ("Together they have {x} + {c} = [x] {t}.",),
            {"c": _MEDIUM},
        ),
        Part(
            ("{He} wants {c} {t}. How many more {t} does {he} need?",),
            ("{N} still needs {c} - {x} = [x] {t}.",),
            {"c": _LARGE},
        ),
    ),
    things=("apples", "marbles", "stickers", "shells", "cards", "coins", "pencils", "cookies", "buttons", "stamps"),
)
MONEY = Scene(
    openings=(
        Part(("{N} has {a} dollars.", "{N} goes shopping with {a} dollars."), (), {"a": _LARGE}),
        Part(
            ("{N} works {a} hours and earns {b} dollars an hour.", "{N} saves {b} dollars a week for {a} weeks."),
            ("{N} has {a} * {b} = [x] dollars.",),
            {"b": (3, 15)},
        ),
    ),
    events=(
        Part(
            ("{He} spends {b} dollars on lunch.", "{He} pays {b} dollars for a book.", "{He} lends {F} {b} dollars."),
            ("{N} has {x} - {b} = [x] dollars left.",),
            {"b": _MEDIUM},
        ),
        Part(
            ("{He} buys {a} {t} at {b} dollars each.", "{He} needs {a} {t}, and each costs {b} dollars."),
            ("The {t} cost {a} * {b} = [y] dollars.", "{N} has {x} - {y} = [x] dollars left."),
        ),
        Part(
            ("{His} aunt gives {him} {b} dollars.", "{He} finds {b} dollars.", "{F} pays {him} back {b} dollars."),
            ("{N} has {x} + {b} = [x] dollars.",),
            {"b": _MEDIUM},
        ),
    ),
    endings=(
        Part(("How many dollars does {N} have left?", "How much money does {he} have now, in dollars?")),
        Part(
            ("A bike costs {c} dollars. How many more dollars does {he} need?",),
            ("{N} still needs {c} - {x} = [x] dollars.",),
            {"c": _LARGE},
        ),
        Part(
            ("Tickets cost {c} dollars each. How many tickets can {he} buy?",),
            ("{N} can buy {x} / {c} = [x] tickets.",),
        ),
    ),
    things=("pens", "cakes", "toys", "plants", "shirts", "maps"),
)
TRAVEL = Scene(
    openings=(
        Part(
            ("A {t} goes {a} miles an hour for {b} hours.", "For {b} hours a {t} travels at {a} miles an hour."),
            ("It goes {a} * {b} = [x] miles.",),
            {"a": (3, 20)},
        ),
        Part(("A {t} goes {a} miles in the morning.", "A {t} has gone {a} miles by noon."), (), {"a": _MEDIUM}),
    ),
    events=(
        Part(
            ("Then it goes {b} miles more.", "After a rest it goes another {b} miles."),
            ("It has gone {x} + {b} = [x] miles.",),
            {"b": _MEDIUM},
        ),
        Part(
            ("Then it goes {a} miles an hour for {b} hours.", "After that it makes {a} trips of {b} miles each."),
            ("That is {a} * {b} = [y] miles.", "It has gone {x} + {y} = [x] miles."),
        ),
    ),
    endings=(
        Part(("How many miles does it go in all?", "How far has it gone, in miles?")),
        Part(
            ("The whole way is {c} miles. How many miles are left?",),
            ("{c} - {x} = [x] miles are left.",),
            {"c": _LARGE},
        ),
        Part(
            ("It uses a gallon every {c} miles. How many gallons does it use?",),
            ("It uses {x} / {c} = [x] gallons.",),
        ),
    ),
    things=("bus", "train", "truck", "boat", "van"),
)
AGES = Scene(
    openings=(Part(("{N} is {a} years old.", "This year {N} turns {a}."), (), {"a": _MEDIUM}),),
    events=(
        Part(("{P} is {b} years older than {Q}.",), ("{P} is {x} + {b} = [x] years old.",), {"b": _MEDIUM}),
        Part(("{P} is {b} years younger than {Q}.",), ("{P} is {x} - {b} = [x] years old.",)),
        Part(("{P} is {b} times as old as {Q}.",), ("{P} is {b} * {x} = [x] years old.",), {"b": (2, 4)}),
        Part(("{P} is twice as old as {Q}.",), ("{P} is 2 * {x} = [x] years old.",)),
    ),
    endings=(
        Part(("How old is {Q}?",)),
        Part(("How old will {Q} be in {c} years?",), ("In {c} years {Q} will be {x} + {c} = [x] years old.",)),
        Part(("How old was {Q} {c} years ago?",), ("{Q} was {x} - {c} = [x] years old.",)),
    ),
)
MAKING = Scene(
    openings=(
        Part(
            ("A machine makes {a} {t} an hour and runs for {b} hours.", "{a} workers make {b} {t} each."),
            ("{a} * {b} = [x] {t} are made.",),
        ),
        Part(("A shop has {a} {t}.", "There are {a} {t} in a store."), (), {"a": _LARGE}),
    ),
    events=(
        Part(
            ("{b} {t} are broken and thrown away.", "{b} {t} are sold."),
            ("{x} - {b} = [x] {t} are left.",),
            {"b": _MEDIUM},
        ),
        Part(
            ("{a} people buy {b} {t} each.", "{a} boxes of {b} {t} are sent away."),
            ("That is {a} * {b} = [y] {t}.", "{x} - {y} = [x] {t} are left."),
        ),
        Part(
            ("{b} more {t} are brought in.", "The next day {b} {t} are added."),
            ("Now there are {x} + {b} = [x] {t}.",),
            {"b": _MEDIUM},
        ),
    ),
    endings=(
        Part(("How many {t} are there now?", "How many {t} are there in the end?")),
        Part(
            ("All {t} are packed into boxes of {c}. How many boxes are there?",), ("There are {x} / {c} = [x] boxes.",)
        ),
        Part(("{c} {t} are ordered. How many {t} are missing?",), ("{c} - {x} = [x] {t} are missing.",), {"c": _LARGE}),
    ),
    things=("lamps", "chairs", "toys", "cups", "kites", "bottles"),
)
READING = Scene(
    openings=(
        Part(("{N}'s book has {a} pages.", "{N} wants to read a book of {a} pages."), (), {"a": (30, MAX_VALUE)}),
        Part(
            ("{N}'s book has {a} parts of {b} pages each.",), ("The book has {a} * {b} = [x] pages.",), {"b": (5, 20)}
        ),
    ),
    events=(
        Part(
            ("{He} reads {b} pages on one day.", "On a train {he} reads {b} pages."),
            ("{x} - {b} = [x] pages are left.",),
            {"b": _MEDIUM},
        ),
        Part(
            ("{He} reads {b} pages a day for {a} days.", "On each of {a} evenings {he} reads {b} pages."),
            ("{He} reads {a} * {b} = [y] pages.", "{x} - {y} = [x] pages are left."),
        ),
    ),
    endings=(
        Part(("How many pages are left?", "How many pages does {he} still have to read?")),
        Part(
            ("{He} reads the rest in {c} days, the same number of pages each day. How many pages is that a day?",),
            ("That is {x} / {c} = [x] pages a day.",),
        ),
    ),
)
SCENES = {"things": THINGS, "money": MONEY, "travel": TRAVEL, "ages": AGES, "making": MAKING, "reading": READING}
