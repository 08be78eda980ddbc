"""The model of a step's time, by hand."""

from __future__ import annotations

import pytest

from unmask.engines.base import Account
from unmask.launch.plan import CARDS, HOP_ACROSS, HOP_WITHIN, LINKS, Card, exchange_seconds, overlapped

CARD = Card(memory=1e9, tflops={"fp32": 1.0}, memory_speed=1e9, within=1e9, across=1e8)


def account(**exchanged: int) -> Account:
    return Account(1, 1, 1, 1, exchanged_bytes=exchanged, exchanges=dict.fromkeys(exchanged, 1))


def test_a_ring_of_two_cards_sends_half_of_the_tensor_each_way() -> None:
    seconds = exchange_seconds("all-gather", account(**{"all-gather": 10**9}), nodes=1, cards=2, card=CARD)
    assert seconds == pytest.approx(0.5 / LINKS + HOP_WITHIN)


def test_an_all_reduce_goes_round_twice() -> None:
    exchanged = account(**{"all-gather": 10**9, "all-reduce": 10**9})
    gathered = exchange_seconds("all-gather", exchanged, nodes=4, cards=8, card=CARD)
    assert exchange_seconds("all-reduce", exchanged, nodes=4, cards=8, card=CARD) == pytest.approx(2 * gathered)


def test_each_card_of_a_node_sends_its_part_across() -> None:
    exchanged = account(**{"all-gather": 10**9})
    within = exchange_seconds("all-gather", exchanged, nodes=1, cards=8, card=CARD)
    across = exchange_seconds("all-gather", exchanged, nodes=4, cards=8, card=CARD) - within
    assert across == pytest.approx(1e9 / 8 * (3 / 4) / (1e8 * LINKS) + 2 * HOP_ACROSS)


@pytest.mark.parametrize(("compute", "exchange"), [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)])
def test_the_shorter_hides_behind_the_longer_but_for_one_part(compute: float, exchange: float) -> None:
    assert overlapped(compute, exchange, 4) == max(compute, exchange) + min(compute, exchange) / 4
    assert overlapped(compute, exchange, 1) == compute + exchange


def test_cards_are_given_in_bytes_and_seconds() -> None:
    for card in CARDS.values():
        assert 1e10 < card.memory < 1e12
        assert card.tflops["fp32"] < card.tflops["bf16"] == card.tflops["fp16"]
        assert card.across < card.within < card.memory_speed < 1e13
