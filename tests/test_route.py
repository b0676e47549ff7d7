"""The way of a version's tensors to their layers: learnt from calls of loaders, or not where it cannot be told."""

from __future__ import annotations

import inspect
from inspect import BoundArguments
from typing import Any

import pytest
import torch

from capo_ray.engines.route import Loads, Route, route_of
from capo_ray.weights import WholeModel, build_handle, read_manifest

Q, K, NORM = torch.ones(2, 3), torch.full((2, 3), 2.0), torch.arange(3.0)
SENT = [("q", Q), ("k", K), ("norm", NORM)]


def merged(param: Any, loaded_weight: Any, shard: str = "q") -> None:
    """A loader that is told which part of its parameter a tensor is."""


def whole(param: Any, loaded_weight: Any) -> None:
    """A loader of all of a parameter."""


def call(loader: Any, *args: Any) -> BoundArguments:
    bound = inspect.signature(loader).bind("the parameter", *args)
    bound.apply_defaults()
    return bound


def loads() -> list[Loads]:
    """What two layers were sent."""
    return [[("weight", call(merged, K, "k")), ("weight", call(merged, Q))], [("scale", call(whole, NORM))]]


def learnt() -> Route:
    route = route_of(SENT, loads())
    assert route is not None
    return route


def test_each_tensor_has_the_call_that_it_came_by_with_another_in_its_place() -> None:
    route = learnt()
    assert {name: (call.layer, call.param) for name, call in route.calls.items()} == {
        "k": (0, "weight"), "q": (0, "weight"), "norm": (1, "scale")
    }  # fmt: skip
    new = torch.zeros(2, 3)
    param, bound = route.calls["k"].of(new)
    bound.arguments["param"] = "another parameter"  # as vLLM does before it calls
    assert param == "weight" and bound.args == ("another parameter", new, "k") and not bound.kwargs
    assert route.calls["k"].arguments["loaded_weight"] is None, "no weights are kept"


@pytest.mark.parametrize("how", ["changed on the way", "loaded twice", "not loaded", "two at once"])
def test_there_is_no_way_where_a_tensor_did_not_come_to_one_loader_as_it_was_sent(how: str) -> None:
    first, second = loads()
    if how == "changed on the way":
        second = [("scale", call(whole, NORM + 1.0))]
    elif how == "loaded twice":
        second = [*second, ("bias", call(whole, NORM))]
    elif how == "not loaded":
        second = []
    else:
        first = [("weight", call(merged, K, Q))]
    assert route_of(SENT, [first, second]) is None


def loaded(sent: dict[str, torch.Tensor]) -> frozenset[tuple[str, tuple[int, ...]]]:
    return WholeModel({}, "float32", False).loads(read_manifest(build_handle(sent, 3, None).manifest))


def test_a_version_is_sent_on_the_way_only_if_its_names_and_shapes_are_those_of_the_first() -> None:
    route = learnt()
    for other, fits in (
        ({}, True),
        ({"norm": torch.zeros(3)}, True),
        ({"norm": torch.zeros(4)}, False),
        ({"head": torch.zeros(3)}, False),
    ):
        assert (loaded(dict(SENT) | other) == route.sent) is fits
    assert loaded(dict(SENT[:2])) != route.sent
