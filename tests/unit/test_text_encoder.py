import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from pinrec_core.errors import InvalidRelease
from pinrec_core.text_encoder import TextEncoder, normalize_text, query_item_id

FRUIT = ["red apple pie", "green apple tart", "apple and pear", "pear tart", "red pear"]
BOATS = ["sailing boat", "motor boat race", "boat race at sea", "sailing the sea", "sea motor"]


def test_normalize_text_folds_case_width_and_punctuation():
    assert normalize_text("  Toy-Story_(1995)!  ") == "toy story 1995"
    assert normalize_text("ＡＢＣ Straße") == "abc strasse"
    assert normalize_text("映画、猫") == "映画 猫"
    assert normalize_text("?!") == ""


def test_query_item_id_is_the_signed_hash_of_the_normalized_text():
    digest = hashlib.blake2b(b"red apple", digest_size=8).digest()
    assert query_item_id("  Red, APPLE ") == int.from_bytes(digest, "little", signed=True)
    assert -(2**63) <= query_item_id("x") < 2**63
    assert query_item_id("red apple") != query_item_id("apple red")


def test_query_item_id_is_the_same_in_another_process():
    code = "from pinrec_core.text_encoder import query_item_id; print(query_item_id('red apple'))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(output) == query_item_id("red apple")


def test_encode_gives_unit_rows_and_zero_for_empty_text():
    encoder = TextEncoder.fit(FRUIT + BOATS, dim=6)
    rows = encoder.encode(["red apple", "", "..."])
    assert rows.shape == (3, 6)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 0], atol=1e-6)
    assert encoder.encode([]).shape == (0, 6)


def test_texts_of_one_subject_are_closer_than_of_two():
    encoder = TextEncoder.fit(FRUIT + BOATS, dim=4)
    fruit, boats = encoder.encode(FRUIT), encoder.encode(BOATS)
    assert (fruit @ fruit.T).mean() > 0.3 + abs((fruit @ boats.T).mean())
    query = encoder.encode(["Apple tarts"])[0]
    assert (fruit @ query).max() > 0.7
    assert (boats @ query).max() < 0.4


def test_a_misspelt_word_is_found_by_its_character_ngrams():
    encoder = TextEncoder.fit(FRUIT + BOATS, dim=8)
    query = encoder.encode(["sailng"])[0]
    assert np.argmax(encoder.encode(FRUIT + BOATS) @ query) in (5, 8)


def test_numbers_that_share_digits_are_not_alike():
    encoder = TextEncoder.fit(["author123456", "author123457", "author987654"], dim=3)
    alike = encoder.encode(["author123456", "author123457", "author987654"]) @ encoder.encode(["author123456"])[0]
    assert alike[0] > 0.99
    assert alike[1] == pytest.approx(alike[2], abs=1e-3)


def test_encoding_does_not_depend_on_the_batch():
    encoder = TextEncoder.fit(FRUIT + BOATS, dim=4)
    together = encoder.encode(FRUIT + BOATS)
    alone = np.concatenate([encoder.encode([text]) for text in FRUIT + BOATS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_fit_is_reproducible_and_pads_when_texts_are_few():
    one, two = TextEncoder.fit(FRUIT, dim=16, seed=3), TextEncoder.fit(FRUIT, dim=16, seed=3)
    np.testing.assert_array_equal(one.projection, two.projection)
    assert one.dim == 16
    assert not one.projection[:, 5:].any()
    np.testing.assert_array_equal(TextEncoder.fit([], dim=3).encode(["apple"]), np.zeros((1, 3)))


def test_svd_keeps_the_geometry_of_few_texts():
    # Rank is not cut here, so two texts without a common n-gram must stay orthogonal.
    encoder = TextEncoder.fit(["abcdef", "uvwxyz", "lmnopq"], dim=3)
    rows = encoder.encode(["abcdef", "uvwxyz", "lmnopq"])
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-5)


def test_fit_to_maps_queries_into_the_space_of_given_embeddings():
    rng = np.random.default_rng(0)
    axes = np.eye(5, dtype=np.float32)[[0] * len(FRUIT) + [1] * len(BOATS)]
    embeddings = 7.0 * axes + rng.normal(0, 0.1, axes.shape).astype(np.float32)
    encoder = TextEncoder.fit_to(FRUIT + BOATS, embeddings)
    assert encoder.dim == 5
    apple, boat = encoder.encode(["an apple", "boat at sea"])
    assert apple[0] > 0.9
    assert boat[1] > 0.9


def test_save_and_load_round_trip_without_pickle(tmp_path):
    encoder = TextEncoder.fit(FRUIT, dim=4)
    encoder.save(tmp_path / "text_encoder")
    loaded = TextEncoder.load(tmp_path / "text_encoder")
    np.testing.assert_array_equal(loaded.encode(FRUIT), encoder.encode(FRUIT))
    assert sorted(p.suffix for p in (tmp_path / "text_encoder").iterdir()) == [".json", ".npy", ".npy"]


@pytest.mark.parametrize("name", ["idf.npy", "projection.npy", "text_encoder.json"])
def test_load_refuses_a_missing_or_broken_file(tmp_path, name):
    TextEncoder.fit(FRUIT, dim=4).save(tmp_path)
    (tmp_path / name).write_bytes(b"not what it should be")
    with pytest.raises(InvalidRelease, match="text encoder"):
        TextEncoder.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InvalidRelease, match="text encoder"):
        TextEncoder.load(tmp_path)


def test_load_refuses_shapes_and_formats_that_do_not_fit(tmp_path):
    TextEncoder.fit(FRUIT, dim=4).save(tmp_path)
    (tmp_path / "text_encoder.json").write_text(json.dumps({"format": 1, "dim": 5}))
    with pytest.raises(InvalidRelease, match=r"projection\.npy \(32768, 4\)"):
        TextEncoder.load(tmp_path)
    (tmp_path / "text_encoder.json").write_text(json.dumps({"format": 2, "dim": 4}))
    with pytest.raises(InvalidRelease, match="format 1"):
        TextEncoder.load(tmp_path)
