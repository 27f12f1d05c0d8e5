"Room 21: the smallest common groups, one text at a time and in a batch, against a search over all divisions."
import random
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_words import load  # noqa: E402

from fuse_nb.alignment import Groups, align, align_index
from fuse_nb.words import Word, WordIndex, split, whitespace_words, word_index


def spelling(rng, m, wide=True):
    "A random list of words over m whitespace words, special tokens anywhere, and words without tokens, which `split` makes of one whitespace word each."
    words, p, k = [], 0, 0
    while p < m:
        if rng.random() < .25: words.append(Word("", [0], k, k + 1, p, p, True)); k += 1
        q, n = min(m, p + rng.choice((1, 1, 1, 2, 3))), rng.choice((0, 1, 1, 2, 4))
        if not n and not wide: q = p + 1
        words.append(Word(" x"*(q - p), [1]*n, k, k + n, p, q)); p, k = q, k + n
    if rng.random() < .4: words.append(Word("", [0], k, k + 1, p, p, True))
    return words


def as_index(spellings):
    "The same words as arrays."
    ids, rows, first, last, counts, texts = [], [0], [], [], [], []
    for words in spellings:
        for w in words:
            ids += w.ids; first += [-1 if w.special else w.first]*len(w.ids); last += [-1 if w.special else w.last]*len(w.ids)
        rows.append(len(ids)); counts.append(max((w.last for w in words), default=0)); texts.append("".join(w.text for w in words))
    return WordIndex(texts, *(np.array(x, dtype=np.int64) for x in (ids, rows, first, last, counts)))


def finest_division(a, b, m):
    "Tried one by one: the largest set of places at which no word of either is cut in two."
    words = [w for w in (*a, *b) if not w.special]
    return next(list(zip((0, *places), (*places, m))) for n in range(m - 1, -1, -1) for places in combinations(range(1, m), n)
                if all(w.last <= p or p <= w.first for p in places for w in words))


def test_groups_are_the_finest_division_that_cuts_no_word():
    for seed in range(300):
        rng = random.Random(seed)
        m = rng.randrange(1, 8)
        a, b = spelling(rng, m), spelling(rng, m)
        division, pairs = finest_division(a, b, m), align(a, b)
        assert len(division) == len(pairs)
        for (p, q), pair in zip(division, pairs):
            for words, tokens in zip((a, b), pair):
                inside = [k for w in words if not w.special and p <= w.first < q for k in range(w.start, w.stop)]
                assert tokens == slice(inside[0], inside[-1] + 1) if inside else tokens.start == tokens.stop


def test_an_empty_group_lies_where_its_tokens_would_be():
    x = [Word("", [9], 0, 1, 0, 0, True), Word("a", [], 1, 1, 0, 1), Word(" b", [1, 2], 1, 3, 1, 2), Word(" c", [], 3, 3, 2, 3), Word("", [9], 3, 4, 3, 3, True)]
    y = [Word("a", [1], 0, 1, 0, 1), Word(" b", [2], 1, 2, 1, 2), Word(" c", [3], 2, 3, 2, 3)]
    wanted = [(slice(1, 1), slice(0, 1)), (slice(1, 3), slice(1, 2)), (slice(3, 3), slice(2, 3))]
    assert align(x, y) == wanted and align(y, x) == [(t, s) for s, t in wanted]
    nothing = [Word("a", [], 0, 0, 0, 1), Word(" b", [], 0, 0, 1, 2), Word(" c", [], 0, 0, 2, 3)]
    assert align(nothing, y) == [(slice(0, 0), t) for _, t in align(y, y)]


def test_a_batch_is_aligned_as_its_texts_are():
    "Texts without words, without tokens, with nothing but special tokens, in any order: rows never mix."
    for seed in range(120):
        rng = random.Random(seed)
        sizes = [rng.randrange(6) for _ in range(rng.randrange(6))]
        a, b = [spelling(rng, m, wide=False) for m in sizes], [spelling(rng, m, wide=False) for m in sizes]
        groups = align_index(as_index(a), as_index(b))
        assert isinstance(groups, Groups) and all(c.dtype == np.int64 for c in groups)
        got = list(zip(*(c.tolist() for c in groups)))
        slow = [(r, s, t) for r, (x, y) in enumerate(zip(a, b)) for s, t in align(x, y)]
        assert len(got) == len(slow)
        for (row, s0, s1, t0, t1), (r, s, t) in zip(got, slow):
            assert row == r
            for (p, q), tokens, words in (((s0, s1), s, a[r]), ((t0, t1), t, b[r])):
                if tokens.start < tokens.stop: assert (p, q) == (tokens.start, tokens.stop)
                else: assert p == q and 0 <= p <= sum(len(w.ids) for w in words)


def test_whitespace_at_the_end_may_be_missing_on_one_side():
    "CLIP's decoder strips it; nothing else may be missing."
    for source, target in (("minilm", "smollm2"), ("smollm2", "minilm")):
        a, b = load(source), load(target)
        x, y = split(a, "red dogs \n"), split(b, "red dogs")
        pairs = align(x, y)
        assert len(pairs) == 3 and pairs[-1][1] == slice(y[-1].stop, y[-1].stop)
        assert [(t, s) for s, t in align(y, x)] == pairs
        groups = align_index(word_index(a, ["red dogs \n", "ran"]), word_index(b, ["red dogs", "ran"]))
        assert groups.row.tolist() == [0, 0, 0, 1] and (groups.target_start[2], groups.target_stop[2]) == (y[-1].stop,)*2
        for bad in ("red dogs ran fast", "red"):
            with pytest.raises(ValueError, match="same text with both"): align(split(a, "red dogs \n"), split(b, bad))
            with pytest.raises(ValueError, match="^text 1: source spells .* same texts with both"): align_index(word_index(a, ["x", "red dogs \n"]), word_index(b, ["x", bad]))


def test_a_token_in_each_word_carries_only_its_own_words_gradient():
    "The published code's fault, as seen from here: a mark on one target token must reach exactly the source tokens of its group."
    a, b = load("smollm2"), load("minilm")
    for text in (" red dog runs", "unbelievable  dogs ran through cafés", "東京 の 天気"):
        x, y = split(a, text), split(b, text, add_special_tokens=True)
        reached = {k: [] for w in y for k in range(w.start, w.stop)}
        for s, t in align(x, y):
            for k in range(t.start, t.stop): reached[k] += range(s.start, s.stop)
        ends = {w.last for w in x} & {w.last for w in y if not w.special}
        for w in y:
            p, q = max([e for e in ends if e <= w.first], default=0), min([e for e in ends if e >= w.last], default=0)
            own = [k for v in x if not v.special and p <= v.first < q for k in range(v.start, v.stop)]
            assert all(reached[k] == ([] if w.special else own) for k in range(w.start, w.stop)), text


def test_what_is_no_spelling_is_refused_by_name():
    tokenizer = load("minilm")
    words, index = split(tokenizer, "red dogs"), word_index(tokenizer, ["red dogs"])
    for bad in (None, "red dogs", 5, [1, 2], [None], ["red"], [*words, "x"], index):
        with pytest.raises(TypeError, match="^source_words must be a list of Word"): align(bad, words)
        with pytest.raises(TypeError, match="^target_words must be a list of Word"): align(words, bad)
    for bad in (None, "red dogs", 5, words, ["red dogs"], index[0]):
        with pytest.raises(TypeError, match="^source must be a WordIndex"): align_index(bad, index)
        with pytest.raises(TypeError, match="^target must be a WordIndex"): align_index(index, bad)
    assert align([], []) == [] and align(iter(words), tuple(words)) == align(words, words)
    assert len(whitespace_words("red dogs")) == len(align(words, words)) == 2


def test_whitespace_that_only_one_spelling_has_meets_nothing_at_the_start_of_the_other():
    "A text of spaces alone: one side has a token for it, the other none; nothing lies before the first token."
    for blank in (" ", "  \n"):
        words = [Word(blank, [7], 0, 1, 0, 1)]
        assert align(words, []) == [(slice(0, 1), slice(0, 0))]
        assert align([], words) == [(slice(0, 0), slice(0, 1))]
