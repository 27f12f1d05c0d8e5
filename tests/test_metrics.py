"Room 80: scores out of rows, intervals and paired comparisons."
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import fuse_nb.metrics as room
import fuse_nb.results as results_room
from fuse_nb.clipscore import clip_scores


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_number_that_is_none_is_refused_with_its_ids(bad, side):
    pair = [{1: 0.5, "b": 1.0, 3: 2.0}, {1: 0.25, "b": 1.5, 3: 2.5}]
    pair[side]["b"] = bad
    with pytest.raises(ValueError, match=f"^{'ab'[side]} holds values that are NaN or infinite.*: b$"):
        results_room.compare_values(*pair)


@pytest.mark.parametrize("bad", [None, "0.5", [1.0]])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(TypeError, match=r"a\['x'\] must be a number"): results_room.compare_values({"x": bad}, {"x": 1.0})


@pytest.mark.parametrize("kwargs, match", [
    (dict(samples=0), "samples"), (dict(samples=-5), "samples"), (dict(samples=1.5), "samples"), (dict(seed="a"), "seed"), (dict(seed=-1), "seed"),
    (dict(level=1.0), "level"), (dict(level=0), "level"), (dict(level=95), "level"), (dict(level=math.nan), "level"),
])
def test_settings_are_checked_at_the_door(kwargs, match):
    with pytest.raises((ValueError, TypeError), match=match): results_room.compare_values({1: 0.5, 2: 0.1}, {1: 0.25, 2: 0.3}, **kwargs)


def test_one_id_written_in_two_ways_is_one_id():
    assert results_room.compare_values({1: 1.0, 2: 3.0}, {"1": 1.0, "2": 2.0})["difference"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="a: two ids are the same when written as text"): results_room.compare_values({1: 1.0, "1": 3.0}, {"1": 1.0, "2": 2.0})


def test_a_number_of_one_image_has_no_interval():
    found = results_room.compare_values({1: 1.0}, {1: 2.0})
    assert (found["low"], found["high"], found["p"]) == (None, None, 1.0)


def test_a_bootstrap_interval_is_that_of_drawing_with_replacement():
    "All 3 ** 3 draws of three rows written out, against many random ones."
    rows = np.array([[0.0], [1.0], [5.0]])
    means = sorted(np.mean(draw) for draw in itertools.product([0.0, 1.0, 5.0], repeat=3))
    low, high = room.bootstrap("ROUGE_L", rows, samples=20_000, level=0.8, seed=1)
    assert means[1] <= low <= means[3] and means[-4] <= high <= means[-2]


@given(st.integers(2, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_bleu_of_rows_is_bleu_of_the_set(n, seed):
    from pycocoevalcap.bleu.bleu import Bleu
    rng = np.random.default_rng(seed)
    words = "a dog cat runs sleeps on the beach".split()
    text = lambda: " ".join(rng.choice(words, rng.integers(1, 9)))
    caps, refs = {i: [text()] for i in range(n)}, {i: [text() for _ in range(3)] for i in range(n)}
    rows = np.array([room.bleu_row(caps[i][0], refs[i]) for i in caps], float)
    for k, value in enumerate(Bleu(4).compute_score(refs, caps, verbose=0)[0], 1):
        assert float(room.pooled(f"Bleu_{k}", rows.sum(0), n)) == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_clip_scores_in_halves_of_precision():
    import torch
    class Half:
        def encode(self, texts): return torch.tensor([[1.0, 0.0]] * len(texts), dtype=torch.bfloat16)
        encode_image = encode
    assert clip_scores(Half(), {1: "x"}, {1: "a"})["CLIPScore"] == {1: 2.5}


@pytest.mark.parametrize("size", [1, 3, 16])
def test_pictures_are_looked_at_a_few_at_a_time(size):
    seen = []
    class Counts:
        def encode(self, texts): return np.array([[1.0, 0.0]] * len(texts))
        def encode_image(self, files): seen.append(len(files)); return np.array([[math.cos(int(f)), math.sin(int(f))] for f in files])
    got = clip_scores(Counts(), {i: str(i) for i in range(40)}, {i: "a" for i in range(40)}, batch_size=size)["CLIPScore"]
    assert max(seen) <= size and sum(seen) == 40
    assert got == pytest.approx({i: 2.5 * max(0, math.cos(i)) for i in range(40)})
