"""The bound on waiting appends, by itself."""

from __future__ import annotations

from service.core.errors import StoreBusy
from service.core.model import Draft
from service.stores.append_budget import AppendBudget


def test_appends_are_accepted_up_to_the_limit_and_again_when_some_are_reported():
    budget = AppendBudget(10_000)
    costs = []
    while (cost := budget.accept(Draft("x" * 1000))) is not None:
        costs.append(cost)
    assert sum(costs) <= 10_000 < sum(costs) + costs[0]
    assert isinstance(budget.full(), StoreBusy)
    budget.release(costs.pop())
    assert budget.accept(Draft("x" * 1000)) is not None
    assert budget.accept(Draft("x" * 1000)) is None


def test_a_single_append_above_the_limit_is_accepted_when_nothing_waits():
    budget = AppendBudget(1)
    cost = budget.accept(Draft("x" * 1000))
    assert cost is not None
    assert budget.accept(Draft("x")) is None
    budget.release(cost)
    assert budget.accept(Draft("x")) is not None


def test_info_and_tags_count():
    budget = AppendBudget(1 << 20)
    plain = budget.accept(Draft("x"))
    assert budget.accept(Draft("x", info="i" * 500)) >= plain + 500
    assert budget.accept(Draft("x", tags="t" * 500)) >= plain + 500
