"The reader of shared prefixes against one whole pass a row, whether caches can be cut, must be grown, or are only remembered tokens."
# ruff: noqa: F811 (fixtures)
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import fuse_nb.prefixes as room
from fuse_nb.causal import CausalLM
from fuse_nb.losses import NextTokens, TargetText, ZeroShotLabel
from fuse_nb.prefixes import PrefixReader, batches, common, cut, spine
from test_models import V, byte_bpe, causal, every_source, folders, lm  # noqa: F401 (fixtures)
from test_search import full_logits, own_cache  # noqa: F401 (fixture)


class Remembers(CausalLM):
    "What a family without a cache does: remember the tokens, and read them again."
    cacheable = True  # as if it were worth it: the reader then asks for caches, and gets tokens

    def prefill(self, ids):
        rows = [list(map(int, r)) for r in ids]
        return torch.stack([full_logits(self, r)[-1] for r in rows]), rows

    def extend(self, cache, rows, new_ids, every=False, keep=None):
        grown = [cache[int(r)] + list(map(int, new)) for r, new in zip(rows, new_ids)]
        return torch.stack([full_logits(self, r)[-(keep or 1):] for r in grown]), grown


class Cacheless(CausalLM):
    "A family whose caches are of no use, and must not be asked for."
    cacheable = False
    def prefill(self, *a): pytest.fail("a cache was asked for")
    def extend(self, *a, **k): pytest.fail("a cache was asked for")


def source(kind="cut"):
    torch.manual_seed(0)
    model = causal("gpt2")
    for p in model.parameters(): p.data.mul_(4 if p.ndim > 1 else 1)
    return {"remembered": Remembers, "not cacheable": Cacheless}.get(kind, CausalLM)("gpt2", model, byte_bpe(), "cpu")


@pytest.fixture(params=["cut", "grown", "remembered", "not cacheable"])
def reader(request, monkeypatch):
    if request.param == "grown": monkeypatch.setattr(room, "cut", lambda cache, n: None)
    return PrefixReader(source(request.param))


TAIL = [30, 40, 50]


def naive(lm, row):
    logp = full_logits(lm, [*row, *TAIL]).log_softmax(-1)[len(row) - 1:-1]
    return -logp[range(len(TAIL)), TAIL].sum()


def asked(reader, rows):
    return reader.each(rows, lambda x: -x.float().log_softmax(-1)[:, range(len(TAIL)), TAIL].sum(1), TAIL[:-1], keep=len(TAIL))


def check(reader, rows):
    got = asked(reader, rows)
    assert got.shape == (len(rows),)
    torch.testing.assert_close(got, torch.stack([naive(reader.lm, r) for r in rows]), atol=1e-4, rtol=1e-4)


def test_steps_of_a_search(reader):
    g, now = random.Random(0), [7, 9, 30, 7, 50, 61]
    left, right = list(range(80, 100)), [20, 21]
    for _ in range(3):
        rows = []
        for _ in range(24):
            p = g.randrange(len(now))
            rows.append(left + now[:p] + [g.randrange(4, V)] + now[p + 1:] + right)
        check(reader, rows)
        now = rows[0][len(left):-len(right)]
    check(reader, [left + now + right])
    check(reader, [[99, *left] + now])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.lists(st.lists(st.integers(4, 6), min_size=1, max_size=10), min_size=1, max_size=8), min_size=1, max_size=3))
def test_any_rows(reader, calls):
    for rows in calls: check(reader, rows)


@every_source
def test_every_family_that_extends(lm):
    reader = PrefixReader(lm)
    rows = [[5, 6, 7, 8, v, 9] for v in range(10, 20)] + [[5, 6, 7], [5, 6, 30, 31]]
    for _ in range(2): check(reader, rows)


def test_nothing_is_read_twice_while_growing(monkeypatch):
    monkeypatch.setattr(room, "cut", lambda cache, n: None)
    lm = source()
    reader, seen = PrefixReader(lm), []
    start = list(range(60, 100))
    rows = [start + [7]*k + [100 + i] + [8]*(3 - k) for k in (0, 3) for i in range(40)]
    asked(reader, rows)  # finds out that caches cannot be cut
    lm.model.register_forward_pre_hook(lambda _, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True)
    reader.trunk, reader.caches = [], {}
    asked(reader, rows)
    assert sum(seen) == 43 + 40*(4 + 2) + 40*(1 + 2)  # the spine once, and each row from where it leaves
    seen.clear()
    asked(reader, [r[:40] + [5] + r[41:] for r in rows])
    assert sum(seen) < 43 + 80*6 - 40 + 1  # the start is still there


def test_errors_and_empty_calls():
    reader = PrefixReader(source())
    assert asked(reader, []).shape == (0,)
    with pytest.raises(ValueError, match="gpt2: the text has no tokens"): asked(reader, [[5], []])
    with pytest.raises(ValueError, match="64 at most"): asked(reader, [[5]*64])


def test_a_cut_cache_leaves_the_whole_as_it_is():
    lm = source()
    _, cache = lm.prefill([[5, 6, 7, 8]])
    part = cut(cache, 2)
    assert part.get_seq_length() == 2 and cache.get_seq_length() == 4
    for _ in range(2):
        for cut_or_whole, read in ((part, [5, 6, 9]), (cache, [5, 6, 7, 8, 9])):
            got, _ = lm.extend(cut_or_whole, [0], [[9]])
            torch.testing.assert_close(got[0], full_logits(lm, read)[-1], atol=1e-4, rtol=1e-4)
    assert cut([[5, 6]], 1) is None and cut(None, 1) is None


def test_three_losses_use_the_one_reader(monkeypatch):
    lm = source()
    losses = TargetText(lm, " ran"), NextTokens(lm, "the dog"), ZeroShotLabel(lm, "good", ("good", "bad"))
    calls = []
    monkeypatch.setattr(PrefixReader, "each", lambda self, rows, *a, **k: calls.append(len(rows)) or torch.zeros(len(rows)))
    for loss in losses: loss.exact(["a cat", "a dog"])
    assert calls == [2, 2, 2]


def test_the_small_functions():
    assert common([1, 2, 3], [1, 2, 4]) == 2 and common([], [1]) == 0 and common([1], [1, 2]) == 1
    assert spine([(1, 2, 3), (1, 2, 4), (1, 5, 3)]) == [1, 2] and spine([(1, 2)]) == []
    assert batches({2: ["a"], 0: ["b"]}, 5, 0) == [(0, ["b"]), (2, ["a"])]


def test_what_single_rows_share_is_kept_and_read_once(monkeypatch):
    "Rows read one after the other: the first leaves all but its last token, the next what both begin with."
    lm, reader = source(), None
    reader, read = PrefixReader(lm), []
    call = lm._call
    monkeypatch.setattr(lm, "_call", lambda *a, **k: (read.append(k["input_ids"].numel()), call(*a, **k))[1])
    a, b = [5, 6, 7, 8, 9], [5, 6, 7, 20, 21]
    torch.testing.assert_close(asked(reader, [a])[0], naive(lm, a), atol=1e-4, rtol=1e-4)
    assert reader.trunk == a[:-1]
    read.clear()
    torch.testing.assert_close(asked(reader, [b])[0], naive(lm, b), atol=1e-4, rtol=1e-4)
    assert reader.trunk == [5, 6, 7]


def test_logits_of_a_large_vocabulary_are_read_a_row_at_a_time():
    "A row of 2^25 logits or more fills the 256 MB of a reading."
    from types import SimpleNamespace as S
    for keep, size in ((1, 2), (2, 1), (4, 1)):
        reader = PrefixReader(S(device=torch.device("cpu"), embedding_table=range(2**25), cacheable=False))
        plan = reader._plan([(5, 6), (5, 7), (8, 9), (8, 10)], 0, keep)
        assert sorted(len(part) for _, part in plan) == [size]*(4//size)
