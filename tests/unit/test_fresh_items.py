"""Content of items newer than the release: by hand, and against a dictionary."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec_core.items.changes import ItemChanges
from pinrec_core.items.content import item_content
from pinrec_core.items.fresh import FreshItems
from pinrec_core.items.log import Item
from pinrec_core.text_encoder import TextEncoder


def changes(rows):
    """(item id, value, or None for a deleted one) -> rows of two equal numbers, the value also the scale."""
    values = np.array([value or 0 for _, value in rows])
    content = np.repeat(values[:, None], 2, axis=1).astype(np.int8)
    item_ids = np.array([item_id for item_id, _ in rows], np.int64)
    deleted = np.array([value is None for _, value in rows], bool)
    return ItemChanges(item_ids, deleted, np.zeros((len(rows), 3), np.float32), content, values.astype(np.float32))


def known(fresh, item_ids):
    flags, content, scale = fresh.content_of(np.array(item_ids, np.int64))
    assert content.dtype == np.int8
    assert (content == scale[:, None]).all()
    return [value if flag else None for flag, value in zip(flags.tolist(), scale.astype(int).tolist(), strict=True)]


def test_added_replaced_deleted():
    fresh = FreshItems(content_dim=2)
    assert not fresh.knows_any
    assert known(fresh, [5, -5]) == [None, None]
    fresh.apply(changes([(5, 1), (-5, 2)]))
    assert fresh.knows_any
    assert known(fresh, [5, -5, 6, 5]) == [1, 2, None, 1]
    fresh.apply(changes([(6, 3), (5, 4), (-5, None)]))
    assert known(fresh, [5, -5, 6]) == [4, None, 3]
    fresh.apply(changes([(6, None), (5, None)]))
    assert not fresh.knows_any
    assert known(fresh, [5, 6]) == [None, None]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.integers(-4, 4), st.none() | st.integers(1, 100), min_size=1), max_size=30))
def test_what_was_said_last_holds(steps):
    fresh, truth = FreshItems(content_dim=2), {}
    many = [(1_000 + item, 7) for item in range(300)]  # with these the rows outgrow their room every few steps
    for step in steps:
        fresh.apply(changes([*step.items(), *many]))
        truth |= step
        assert known(fresh, range(-5, 6)) == [truth.get(item) for item in range(-5, 6)]
    if steps:
        assert known(fresh, [item for item, _ in many]) == [7] * 300


def test_content_is_the_embedding_or_the_texts():
    encoder = TextEncoder.fit(["green lantern", "brass lantern", "mossy stone"], 4)
    items = [
        Item(1, embedding=np.array([3, 0, 4, 0], np.float32)),
        Item(2, "Brass  LANTERN"),
        Item(3, deleted=True),
        Item(4, embedding=np.array([1, 2], np.float32)),  # of another width than this release's
    ]
    content, scale = item_content(items, encoder)
    np.testing.assert_allclose(content[0] * scale[0], [0.6, 0, 0.8, 0], atol=0.01)
    np.testing.assert_allclose(content[1] * scale[1], encoder.encode(["brass lantern"])[0], atol=0.01)
    assert scale[2:].tolist() == [0, 0]
    assert item_content([], encoder)[0].shape == (0, 4)
