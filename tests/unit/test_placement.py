"""Who gets which item: every rule by hand, and a slow twin that reads like the rules."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pinrec_core.retrieve.placement import FILLED, Listing, Placed, Settlement, arrange, fill


def listing(outcome, allocation, item_ids, scores=None):
    """By default all scores of a rank are equal: 1, 0.9, 0.8 ..."""
    return Listing(outcome, allocation, item_ids, scores or [1 - rank / 10 for rank in range(len(item_ids))])


def settled(listings, counts, lend=False):
    """Items of each embedding, best rank first."""
    settlement = Settlement(listings, counts)
    if lend:
        settlement.lend()
    placed = sorted(settlement.placed, key=lambda item: item.rank)
    return [[item.item_id for item in placed if item.source == embedding] for embedding in range(len(listings))]


# Rule 1: one holder an item


def test_each_embedding_gets_its_allocation():
    assert settled([listing(0, 2, [1, 2, 3]), listing(1, 1, [4, 5]), listing(1, 0, [6])], [2, 1]) == [[1, 2], [4], []]


def test_inside_an_outcome_the_better_rank_keeps_an_item():
    assert settled([listing(0, 2, [1, 2, 3]), listing(0, 2, [2, 1, 4])], [4]) == [[1, 3], [2, 4]]


def test_inside_an_outcome_equal_ranks_go_to_the_higher_score_then_to_the_earlier_embedding():
    low, high = listing(0, 1, [1, 2], [0.5, 0.4]), listing(0, 1, [1, 3], [0.6, 0.1])
    assert settled([low, high], [2]) == [[2], [1]]
    assert settled([low, low], [2]) == [[1], [2]]


def test_between_outcomes_the_better_rank_wins_whatever_the_scores_and_counts():
    large, small = listing(0, 2, [1, 2, 3], [0.9, 0.8, 0.7]), listing(1, 1, [2, 9], [0.1, 0.0])
    assert settled([large, small], [2, 1]) == [[1, 3], [2]]


def test_between_outcomes_equal_ranks_go_to_the_larger_count():
    small, large = listing(0, 1, [1, 2], [0.9, 0.8]), listing(1, 2, [1, 3, 4], [0.3, 0.2, 0.1])
    assert settled([small, large], [1, 2]) == [[2], [1, 3]]


def test_between_outcomes_of_equal_count_equal_ranks_go_to_the_earlier_outcome():
    later, earlier = listing(1, 1, [1, 2], [0.9, 0.8]), listing(0, 1, [1, 3], [0.3, 0.2])
    assert settled([later, earlier], [1, 1]) == [[2], [1]]


def test_refilling_may_take_an_item_from_a_third():
    # 1 is the nearest of all three and stays with the largest count, outcome 0. Outcome 1 goes on to 3, which it finds
    # at rank 1 and outcome 0 at rank 2: it moves. Outcome 2 goes on to 4 (rank 1). Outcome 0 wants 4 next (rank 3), in
    # vain, and ends on 5.
    listings = [listing(0, 3, [1, 2, 3, 4, 5]), listing(1, 1, [1, 3, 9]), listing(2, 1, [1, 4, 8])]
    assert settled(listings, [3, 1, 1]) == [[1, 2, 5], [3], [4]]


def test_an_item_nobody_else_wants_is_not_lost_to_a_better_rank():
    # outcome 1 found 5 at a better rank, but needs only 7: outcome 0 may have it
    assert settled([listing(0, 2, [1, 2, 5]), listing(1, 1, [7, 5]), listing(0, 1, [2])], [3, 1]) == [[1, 5], [7], [2]]


def test_a_list_that_ends_leaves_places_open():
    settlement = Settlement([listing(0, 3, [1, 2]), listing(0, 1, [2, 3])], [4])
    assert settlement.short == [0]
    assert sorted(item.item_id for item in settlement.placed) == [1, 2]


# Rule 2: leftovers of the outcome's other embeddings


def test_open_places_go_to_the_sibling_whose_next_item_ranks_best():
    listings = [listing(0, 3, [1]), listing(0, 2, [2, 3, 4, 5]), listing(0, 1, [6, 7, 8])]
    # next ranks: 2 and 1, so 7; then 2 and 2 with equal scores, so the earlier embedding's 4
    assert settled(listings, [6], lend=True) == [[1], [2, 3, 4], [6, 7]]


def test_equal_next_ranks_go_to_the_higher_score():
    listings = [listing(0, 2, [1]), listing(0, 1, [2, 3], [0.9, 0.2]), listing(0, 1, [4, 5], [0.8, 0.3])]
    assert settled(listings, [4], lend=True) == [[1], [2], [4, 5]]


def test_another_outcome_lends_nothing():
    settlement = Settlement([listing(0, 2, [1]), listing(1, 1, [2, 3])], [2, 1])
    settlement.lend()
    assert settlement.short == [0]
    assert len(settlement.placed) == 2


def test_a_lent_place_competes_like_any_other():
    # outcome 0 borrows for its second embedding, whose next, 9, outcome 1 holds at rank 2: 1 < 2, so outcome 1 goes on
    listings = [listing(0, 2, [1]), listing(0, 1, [2, 9]), listing(1, 3, [5, 6, 9, 7])]
    assert settled(listings, [3, 3], lend=True) == [[1], [2, 9], [5, 6, 7]]


def test_the_outcome_with_the_larger_count_borrows_first():
    # Each outcome lacks one. Outcome 1 (count 8) borrows first: its fourth embedding takes 2, so that the second of
    # outcome 0 goes on to 3 and has 4 next, at rank 3 like 14 of the third, whose score is higher.
    listings = [
        listing(0, 1, []),
        listing(0, 2, [1, 2, 3, 4], [0.9, 0.8, 0.7, 0.1]),
        listing(0, 3, [11, 12, 13, 14], [0.9, 0.8, 0.7, 0.6]),
        listing(1, 1, []),
        listing(1, 1, [21, 2]),
        listing(1, 6, [31, 32, 33, 34, 35, 36]),
    ]
    held = settled(listings, [6, 8], lend=True)
    assert held == [[], [1, 3], [11, 12, 13, 14], [], [21, 2], [31, 32, 33, 34, 35, 36]]


# Rule 3: popular lists


def test_fill_takes_what_is_lacking_in_list_order():
    placed = [Placed(1, 0, 0, 0, 0.9)]
    filled = fill(placed, [3, 0], [[1, 8, 8, 7, 6], [5]], blocked=[7])
    assert filled == [Placed(8, 0, FILLED, 0, 0.0), Placed(6, 0, FILLED, 0, 0.0)]


def test_fill_serves_the_larger_count_first():
    assert [item[:2] for item in fill([], [1, 2], [[1, 2, 3], [1, 2, 4]], blocked=[])] == [(1, 1), (2, 1), (3, 0)]
    assert [item[:2] for item in fill([], [1, 1], [[1, 2], [1, 2]], blocked=[])] == [(1, 0), (2, 1)]


def test_fill_ends_with_its_lists():
    assert len(fill([], [5], [[1, 2]], blocked=[])) == 2


def test_fill_adds_nothing_to_a_full_answer():
    assert fill([Placed(1, 0, 0, 0, 0.9)], [1], [[2]], blocked=[]) == []


# Rule 4: order


def answer(*outcomes):
    return [Placed(item_id, outcome, 0, item_id, 1 - item_id / 100) for item_id, outcome in enumerate(outcomes)]


def interleaved(*outcomes):
    return "".join("ABC"[item.outcome] for item in arrange(answer(*outcomes)))


def test_outcomes_are_interleaved_by_share():
    assert interleaved(0, 0, 1, 1) == "ABAB"  # 1/4 3/4 for both: the earlier outcome first
    assert interleaved(0, 0, 0, 1) == "AABA"  # A at 1/6 1/2 5/6, B at 1/2: the larger first
    assert interleaved(0, 1, 1, 1) == "BBAB"
    assert interleaved(0, 0, 0, 0, 0, 1, 1, 1, 2) == "ABAABCABA"  # .1 .3 .5 .7 .9, .167 .5 .833, .5


def test_scores_descend_inside_an_outcome():
    placed = [Placed(1, 0, 0, 0, 0.1), Placed(2, 0, 1, 0, 0.7), Placed(3, 0, FILLED, 0, 0.0), Placed(4, 0, 0, 1, -0.2)]
    assert [item.item_id for item in arrange(placed)] == [2, 1, 3, 4]


def test_equal_scores_found_before_filled_then_embedding_then_rank():
    placed = [
        Placed(1, 0, FILLED, 0, 0.0), Placed(2, 0, 1, 0, 0.0), Placed(3, 0, 0, 5, 0.0), Placed(4, 0, 0, 2, 0.0)
    ]  # fmt: skip
    assert [item.item_id for item in arrange(placed)] == [4, 3, 2, 1]


def test_filled_items_keep_their_list_order():
    placed = [Placed(item_id, 0, FILLED, 0, 0.0) for item_id in (5, 3, 9)]
    assert [item.item_id for item in arrange(placed)] == [5, 3, 9]


def test_nothing_to_arrange():
    assert arrange([]) == []


# The slow twin


def slow_claims(listings, counts, places, rejected):
    """One round: everyone names the first items it has not lost; the claims to each item, the best first."""
    claims = {}
    for embedding, found in enumerate(listings):
        open_items = [item for item in found.item_ids if item not in rejected[embedding]][: places[embedding]]
        for item in open_items:
            rank = found.item_ids.index(item)
            key = (rank, -counts[found.outcome], found.outcome, -found.scores[rank], embedding)
            claims.setdefault(item, []).append(key)
    return {item: sorted(keys) for item, keys in claims.items()}


def slow_settle(listings, counts, places, rejected):
    while True:
        claims = slow_claims(listings, counts, places, rejected)
        losers = [(key[-1], item) for item, keys in claims.items() for key in keys[1:]]
        if not losers:
            return {item: keys[0] for item, keys in claims.items()}
        for embedding, item in losers:
            rejected[embedding].add(item)


def slow_place(listings, counts):
    """Rules 1 and 2: {item: (outcome, embedding)}."""
    places = [found.allocation for found in listings]
    rejected = [set() for _ in listings]
    while True:
        held = slow_settle(listings, counts, places, rejected)
        used = [sum(key[-1] == embedding for key in held.values()) for embedding in range(len(listings))]
        loans = []
        for lender, found in enumerate(listings):
            if used[lender] == places[lender]:
                continue
            for borrower, other in enumerate(listings):
                tried = rejected[borrower] | {item for item, key in held.items() if key[-1] == borrower}
                untried = [rank for rank, item in enumerate(other.item_ids) if item not in tried]
                if other.outcome == found.outcome and untried:
                    order = (-counts[found.outcome], found.outcome, untried[0], -other.scores[untried[0]], borrower)
                    loans.append((order, lender))
        if not loans:
            return {item: (key[2], key[-1]) for item, key in held.items()}
        order, lender = min(loans)
        places[lender] -= 1
        places[order[-1]] += 1


@st.composite
def problems(draw):
    """Few items and many claims to them, with lists that end."""
    num_outcomes, num_items = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    listings = []
    for _ in range(draw(st.integers(0, 5))):
        items = draw(st.permutations(range(num_items)))[: draw(st.integers(0, num_items))]
        grid = draw(st.lists(st.integers(-4, 4), min_size=len(items), max_size=len(items)))
        scores = sorted((value / 4 for value in grid), reverse=True)
        listings.append(Listing(draw(st.integers(0, num_outcomes - 1)), draw(st.integers(0, 5)), items, scores))
    counts = [sum(each.allocation for each in listings if each.outcome == a) for a in range(num_outcomes)]
    return listings, counts


@given(problems())
def test_equals_the_slow_twin(problem):
    listings, counts = problem
    settlement = Settlement(listings, counts)
    settlement.lend()
    assert {item.item_id: (item.outcome, item.source) for item in settlement.placed} == slow_place(listings, counts)


@given(problems(), st.randoms())
def test_does_not_depend_on_the_order_of_processing(problem, random):
    """Renumbering embeddings matters only where rank, outcome and score tie, so scores are made distinct."""
    listings, counts = problem
    spread = [
        Listing(each.outcome, each.allocation, each.item_ids, [s - at / 100 for s in each.scores])
        for at, each in enumerate(listings)
    ]
    order = list(range(len(spread)))
    random.shuffle(order)
    shuffled = Settlement([spread[at] for at in order], counts)
    straight = Settlement(spread, counts)
    shuffled.lend()
    straight.lend()
    assert {(item.item_id, order[item.source]) for item in shuffled.placed} == {
        (item.item_id, item.source) for item in straight.placed
    }


@given(problems())
def test_nobody_prefers_what_another_holds_with_a_worse_claim(problem):
    """Stability: the definition of the rule, without the algorithm."""
    listings, counts = problem
    settlement = Settlement(listings, counts)
    claims = {item.item_id: item for item in settlement.placed}
    for embedding, found in enumerate(listings):
        held = [rank for rank, item in enumerate(found.item_ids) if item in claims and claims[item].source == embedding]
        for rank, item in enumerate(found.item_ids):
            wants = rank not in held and found.allocation > 0 and (len(held) < found.allocation or rank < held[-1])
            if wants:
                holder = claims[item]
                assert (holder.rank, -counts[holder.outcome], holder.outcome, -holder.score, holder.source) < (
                    rank, -counts[found.outcome], found.outcome, -found.scores[rank], embedding
                )  # fmt: skip


@given(st.lists(st.integers(0, 3), max_size=60))
def test_every_prefix_is_split_like_the_whole(outcomes):
    """At each place stands the outcome with the largest n / (2 served + 1)."""
    arranged = [item.outcome for item in arrange(answer(*outcomes))]
    totals = np.bincount(outcomes, minlength=4).tolist()
    served = [0, 0, 0, 0]
    for outcome in arranged:
        quotients = [(Fraction(totals[a], 2 * served[a] + 1), totals[a], -a) for a in range(4) if served[a] < totals[a]]
        assert -max(quotients)[2] == outcome
        served[outcome] += 1
    assert served == totals
