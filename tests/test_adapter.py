"The adapter: worlds with a known answer, its laws, its rule for long words, its files, its cache, and what it says of bad input."
import json
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch.testing import assert_close

import fuse_nb.adapter as adapter_room
import fuse_nb.sharing as sharing_room
from fuse_nb import FuseAdapter
from fuse_nb.adapter import CLASSES
from fuse_nb.ridge import RIDGES, ridge_path, shrink
from fuse_nb.spelling import FORMS, Spellings, spell
from fuse_nb.gram import ConditionWarning, GramAccumulator
from fuse_nb.tproduct import bcirc, fold, tprod, ttranspose, unfold
from fuse_nb.spectrum import frequencies
from fuse_nb.words import word_ids
from test_models import V, byte_bpe, word_pieces

D, E = 8, 5             # dimensions of the source and of the target


BPE, WORDPIECE = byte_bpe(), word_pieces()
LETTERS = np.array(list("abcdeghiknoprst"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path/"cache"))


def model(d, tokenizer=BPE, rows=V, seed=0, name="model"):
    return SimpleNamespace(tokenizer=tokenizer, embedding_table=torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), name=name)


def some_words(n, longest=6, seed=0):
    rng, found = np.random.default_rng(seed), {}
    while len(found) < n: found["".join(rng.choice(LETTERS, rng.integers(1, longest + 1)))] = None
    return list(found)


def source(): return model(D, BPE, seed=1, name="source")
def target(): return model(E, WORDPIECE, seed=2, name="target")


def fit(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        return FuseAdapter.fit(*(args or (source(), target())), **dict(dict(words=some_words(400)), **options))


def world(counts, key, n=120, seed=0, form=0):
    """A world with a known answer: every word has tokens of its own, and the target's embeddings are the source's * T of the class `key(a, b)`.
    Returns the two models, the spellings, and {key: T}."""
    g = torch.Generator().manual_seed(seed)
    truth, groups, tables, words, used = {}, {}, ([], []), 0, [0, 0]
    for a, b in counts:
        X = torch.randn(n, D, a, generator=g)
        T = truth.setdefault(key(a, b), torch.randn(D, E, b, generator=g))
        Y = tprod(torch.nn.functional.pad(X, (0, b - a)) if a < b else X[..., :b], T)
        ids = []
        for side, (Z, k) in enumerate(((X, a), (Y, b))):
            ids.append(used[side] + torch.arange(n*k).view(n, k))
            tables[side].append(Z.mT.reshape(n*k, -1)); used[side] += n*k
        groups[a, b] = (words + torch.arange(n), torch.full((n,), form), *ids); words += n
    models = tuple(SimpleNamespace(tokenizer=BPE, embedding_table=torch.cat(t), name=name) for t, name in zip(tables, ("source", "target")))
    return *models, Spellings([f"w{i}" for i in range(words)], np.full(words, 1/words), groups), truth


# In classes of the target's count, source words are padded or cut; else only words that the source has in no more tokens than the target can be exact images.
COUNTS = dict(target=[(1, 1), (3, 1), (1, 2), (2, 2), (4, 2), (3, 3)], larger=[(1, 1), (1, 2), (2, 2), (1, 3), (3, 3)], pairs=[(1, 1), (1, 2), (2, 2), (1, 3), (3, 3)])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
def test_exact_images_are_recovered(classes, center):
    key = {"target": lambda a, b: b, "larger": max, "pairs": lambda a, b: (a, b)}[classes]
    s, t, spelled, truth = world(COUNTS[classes], key)
    adapter = fit(s, t, words=spelled, classes=classes, max_tokens=3, center=center)
    for k, T in truth.items():
        if k == (1, 1): k = 1                        # at l = 1 the class is the pair
        found = adapter.tensor(k) if isinstance(k, int) else adapter.tensor(max(k), k)
        assert (found - T).abs().max() < 1e-4
    assert adapter.coverage["held_out"]["r2"] > 1 - 1e-6 and adapter.score(spelled)["r2"] > 1 - 1e-6
    assert set(adapter.pairs) == ({ab for ab in truth if ab != (1, 1)} if classes == "pairs" else set())


def test_a_linear_image_of_one_tokenizer_through_the_whole_fit():
    s = source()
    W = torch.randn(D, E, generator=torch.Generator().manual_seed(5))
    t = SimpleNamespace(tokenizer=BPE, embedding_table=s.embedding_table @ W, name="target")
    adapter = fit(s, t, words=some_words(600, 4), ridge={1: 0.0})   # too few words of one token to choose a ridge on
    for l, T in adapter.tensors.items():             # token by token: the map in the first slice, nothing in the others
        assert_close(T[..., 0], W, rtol=0, atol=1e-4)
        assert l == 1 or T[..., 1:].abs().max() < 1e-4
    assert sorted(adapter.tensors) == [1, 2, 3, 4]


def test_noise_costs_what_theory_says():
    n, sigma = 2000, 0.3
    s, t, spelled, truth = world([(2, 2)], max, n=n)
    t.embedding_table = t.embedding_table + sigma*torch.randn(t.embedding_table.shape, generator=torch.Generator().manual_seed(9))
    T = fit(s, t, words=spelled, classes="larger", ridge=0.0, max_tokens=2).tensors[2]
    expected = sigma*(1/(2*(0.9*n - D - 1)))**0.5    # a tenth is held out; l = 2 slices of unit variance help to determine each entry
    assert abs((T - truth[2]).square().mean().sqrt()/expected - 1) < 0.25


def test_held_out_words_have_no_part_in_the_fit_and_words_of_no_weight_neither():
    s, t, spelled, _ = world([(1, 1), (2, 2)], max)
    noise = torch.randn(t.embedding_table.shape, generator=torch.Generator().manual_seed(3))
    t.embedding_table = t.embedding_table + noise
    words, options = len(spelled.words), dict(words=spelled, classes="larger", max_tokens=2)
    order, k = np.random.default_rng(0).permutation(words), round(0.1*words)
    one = fit(s, t, **options)
    def rows_of(which): return torch.cat([T[torch.isin(w, torch.as_tensor(which))].flatten() for w, _, _, T in spelled.groups.values()])
    def spoilt(which):
        table = t.embedding_table.clone()
        table[rows_of(which)] = 100.0
        return SimpleNamespace(tokenizer=BPE, embedding_table=table, name="target")
    for which, same in ((order[k:2*k], True), (order[:k], False), (order[2*k:3*k], False)):
        two = fit(s, spoilt(which), **options)
        assert all(torch.equal(one.tensors[l], two.tensors[l]) for l in (1, 2)) == same
    spelled.frequencies[order[:3*k]] = 0             # most held-out words and some others: no weight, no part
    a, b = (fit(s, m, **options, weighting=1.0, ridge=0.0) for m in (t, spoilt(order[:3*k])))
    for l in (1, 2): assert_close(a.tensors[l], b.tensors[l], rtol=0, atol=1e-5)


def test_weights_are_powers_of_the_frequency():
    s, t, spelled, _ = world([(1, 1)], max, n=60)
    t.embedding_table = torch.randn(t.embedding_table.shape, generator=torch.Generator().manual_seed(4))
    spelled.frequencies[:] = np.random.default_rng(1).random(60)
    T = fit(s, t, words=spelled, weighting=0.5, ridge=0.0, holdout=0.0, max_tokens=1).tensors[1][..., 0]
    w = torch.as_tensor(spelled.frequencies)**0.25   # the root of the weight
    expected = torch.linalg.lstsq(w[:, None]*s.embedding_table.double(), w[:, None]*t.embedding_table.double()).solution
    assert_close(T.double(), expected, rtol=0, atol=1e-5)


def noisy(counts, n, seed=0):
    "A world as `world` makes it, whose target has noise; and the part of each word as `fit` draws it: 0 fit, 1 ridge, 2 only for the score."
    s, t, spelled, _ = world(counts, max, n, seed)
    t.embedding_table = t.embedding_table + torch.randn(t.embedding_table.shape, generator=torch.Generator().manual_seed(seed + 1))
    order, k, part = np.random.default_rng(0).permutation(len(spelled.words)), round(0.1*len(spelled.words)), torch.zeros(len(spelled.words), dtype=torch.long)
    part[order[:k]], part[order[k:2*k]] = 1, 2
    return s, t, spelled, part


def tubes_of(model, spelled, side, l, keep):
    return {ab: torch.nn.functional.pad(model.embedding_table[g[side][keep[g[0]]]].mT, (0, l - ab[side - 2])).double() for ab, g in spelled.groups.items()}


def ridged(X, Y, ridge, prior):
    "The definition: the T that minimizes |X*T - Y|^2 + lambda |T - prior|^2, by block-circulant matrices."
    B = bcirc(X)
    G = B.T @ B
    lam = ridge*G.diagonal().mean()
    return fold(torch.linalg.solve(G + lam*torch.eye(len(G), dtype=G.dtype), B.T @ unfold(Y) + lam*unfold(prior)), X.shape[2])


def test_a_pair_is_shrunk_to_its_class_and_rare_pairs_have_none():
    s, t, spelled, part = noisy([(1, 3), (2, 3), (3, 3)], 40)
    spelled.groups[2, 3] = tuple(x[:D] for x in spelled.groups[2, 3])             # eight words, some of them not for the fit
    assert (part[spelled.groups[2, 3][0]] > 0).any()
    adapter = fit(s, t, words=spelled, max_tokens=3, ridge=0.3)
    X, Y = (tubes_of(m, spelled, k, 3, part < 2) for m, k in ((s, 2), (t, 3)))
    T = ridged(torch.cat(list(X.values())), torch.cat(list(Y.values())), 0.3, torch.zeros(D, E, 3, dtype=torch.float64))
    assert_close(adapter.tensors[3].double(), T, rtol=0, atol=1e-5)
    assert set(adapter.pairs) == {(1, 3), (3, 3)}
    for ab, P in adapter.pairs.items(): assert_close(P.double(), ridged(X[ab], Y[ab], 0.3, T), rtol=0, atol=1e-5)


def test_the_ridge_is_the_best_on_words_that_are_held_out():
    s, t, spelled, part = noisy([(2, 2)], 150)
    chosen = fit(s, t, words=spelled, max_tokens=2, classes="larger").coverage["classes"][2]["ridge"]
    (X, Y), (H, Z) = ([tubes_of(m, spelled, k, 2, part == p)[2, 2] for m, k in ((s, 2), (t, 3))] for p in (0, 1))
    zero = torch.zeros(D, E, 2, dtype=torch.float64)
    r2 = np.array([1 - ((tprod(H, ridged(X, Y, r, zero)) - Z).square().sum()/(Z - Z.mean(0)).square().sum()).item() for r in RIDGES])
    assert chosen == RIDGES[np.flatnonzero(r2 >= r2.max() - 1e-5)[0]] and 0 < chosen < RIDGES[-1]


def test_the_fit_is_deterministic_and_does_not_depend_on_the_chunk():
    one, two, seven = fit(), fit(), fit(chunk=7)
    for k, T in {**one.tensors, **one.pairs}.items():
        others = [a.tensors[k] if isinstance(k, int) else a.pairs[k] for a in (two, seven)]
        assert torch.equal(T, others[0])
        assert_close(T, others[1], rtol=0, atol=1e-5)
    assert one.pairs and any(not torch.equal(one.tensors[l], fit(seed=1).tensors[l]) for l in one.tensors)


# ---------------------------------------------------------------- spelling

@pytest.mark.parametrize("fast", [True, False])
def test_spell_is_what_the_tokenizers_say(fast):
    s, t, words = source(), target(), some_words(60) + ["naïve", "🙂", "don't", "漢字"]
    if not fast: s = SimpleNamespace(tokenizer=Slow(BPE), embedding_table=s.embedding_table, name="slow")
    spelled, seen = spell(s, t, words, range(1, len(words) + 1)), set()
    for (a, b), (word, form, S, T) in spelled.groups.items():
        assert S.shape == (len(word), a) and T.shape == (len(word), b) and min(a, b) > 0
        for w, k, x, y in zip(word.tolist(), form.tolist(), S.tolist(), T.tolist()):
            seen.add((w, k))
            written = words[w][:1].upper() + words[w][1:] if FORMS[k] == "capital" else words[w]
            assert ([x], [y]) == tuple(word_ids(m.tokenizer, [written], FORMS[k] != "start") for m in (source(), t))
    assert seen == {(w, k) for w in range(len(words)) for k in range(3)}


class Slow:
    "A tokenizer without a fast backend or offsets."
    is_fast = False
    def __init__(self, tokenizer): self.tokenizer = tokenizer
    def __call__(self, text, **options): return self.tokenizer(text, add_special_tokens=False)
    def get_vocab(self): return self.tokenizer.get_vocab()
    def decode(self, ids, **options): return self.tokenizer.decode(ids, **options)


# ---------------------------------------------------------------- the laws of push and pullback

@pytest.mark.parametrize("classes,center", [("pairs", True), ("larger", False), ("target", False)])
def test_pullback_is_the_adjoint_of_push(classes, center):
    adapter = fit(classes=classes, center=center).to(dtype=torch.float64)
    assert classes != "pairs" or len(adapter.pairs) > 2
    for key in [*adapter.tensors, *adapter.pairs]:
        l, pair = (key, None) if isinstance(key, int) else (max(key), key)
        g = torch.Generator().manual_seed(l)
        x, up = torch.randn(7, l, D, generator=g, dtype=torch.float64), torch.randn(7, l, E, generator=g, dtype=torch.float64)
        T, bias = adapter.tensor(l, pair), adapter.push(torch.zeros_like(x), pair)
        y, back = adapter.push(x, pair) - bias, adapter.pullback(up, pair)
        assert_close((y*up).sum(), (x*back).sum(), rtol=1e-10, atol=0)
        assert_close(y, tprod(x.mT, T).mT, rtol=0, atol=1e-10)
        assert_close(back, tprod(up.mT, ttranspose(T)).mT, rtol=0, atol=1e-10)
        assert (bias.abs().max() > 1e-3) == center
    assert adapter.push(torch.zeros(0, 1, D)).shape == (0, 1, E)


def test_ridge_path_equals_solving_and_scoring_by_the_definition():
    g, l = torch.Generator().manual_seed(0), 3
    def draw(n): return (torch.randn(n, D, l, generator=g, dtype=torch.float64) + 0.5, torch.randn(n, E, l, generator=g, dtype=torch.float64) - 1)
    (X, Y), (H, Z) = draw(15), draw(11)
    prior, ridges = torch.randn(D, E, l, generator=g, dtype=torch.float64), [0.0, 1e-4, 0.1, 30.0]
    train, held = (GramAccumulator(D, E, l).update(*xy) for xy in ((X, Y), (H, Z)))
    for center in (False, True):
        for p in (None, prior):
            got = ridge_path(train, held, ridges, p, center)
            (x, y), (h, z) = (((a - a.mean(0), b - b.mean(0)) if center else (a, b)) for a, b in ((X, Y), (H, Z)))
            B, q = bcirc(x), unfold(p if p is not None else torch.zeros_like(prior))
            G = B.T @ B
            for ridge, r2 in zip(ridges, got):
                lam = ridge*G.diagonal().mean()
                T = fold(torch.linalg.solve(G + lam*torch.eye(len(G), dtype=G.dtype), B.T @ unfold(y) + lam*q), l)
                assert_close(shrink(train, ridge, p, center), T, rtol=0, atol=1e-7)
                assert abs(1 - ((tprod(h, T) - z).square().sum()/(Z - Z.mean(0)).square().sum()).item() - r2) < 1e-6


def test_score_is_r2_about_the_mean_token_by_the_definition():
    adapter, s, t = fit(max_tokens=3, center=True), source(), target()
    spelled = spell(s, t, some_words(90, 7, seed=8), np.arange(1, 91))
    chosen = torch.arange(90) % 3 == 0
    sums = np.zeros(4)
    for (_, b), (word, form, S, T) in spelled.groups.items():
        for w, k, x, y in zip(word, form, S, T):
            if k != 1 or not chosen[w]: continue
            Y = t.embedding_table[y]
            error = ((adapter.predict(s.embedding_table[x][None], b)[0] - Y)**2).sum().item(), ((Y - adapter.mean)**2).sum().item()
            sums += *error, *(spelled.frequencies[w]*e for e in error)
    got = adapter.score(spelled, chosen, form=1, chunk=5)
    assert got["words"] == 30 and abs(got["r2"] - (1 - sums[0]/sums[1])) < 1e-5 and abs(got["r2_weighted"] - (1 - sums[2]/sums[3])) < 1e-5
    assert adapter.score(Spellings([], np.zeros(0), {})) == dict(words=0, r2=None, r2_weighted=None, by_class={})


# ---------------------------------------------------------------- long words and empty classes

def bare(classes, known): return FuseAdapter({l: torch.zeros(2, 2, l) for l in known}, dict(classes=classes, source=dict(d=2, name="a"), target=dict(d=2, name="b")))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CLASSES), st.sets(st.integers(1, 6), min_size=1), st.integers(1, 14), st.integers(1, 14))
@example("pairs", {2}, 1, 4)
@example("target", {1, 2}, 9, 1)
@example("larger", {3}, 4, 4)
def test_pieces_cover_the_word_and_use_known_classes_only(classes, known, n_source, n_target):
    adapter, by_target = bare(classes, known), classes == "target"
    def needs(s, t): return t if by_target else max(s, t)
    try: pieces = adapter.pieces(n_source, n_target)
    except ValueError as e:
        assert "no class for a word" in str(e) and 1 not in known and max(known) < max(n_source, n_target)
        return
    for l, s, t in pieces:
        a, b = s.stop - s.start, t.stop - t.start
        assert l in known and 1 <= a <= l and 1 <= b <= l
    assert {i for *_, t in pieces for i in range(n_target)[t]} == set(range(n_target))
    if not by_target: assert {i for _, s, _ in pieces for i in range(n_source)[s]} == set(range(n_source))
    whole = needs(n_source, n_target)
    if whole in known: assert len(pieces) == 1 and pieces[0][0] == whole
    for side, n in ((1, n_source), (2, n_target)):
        lengths, starts = [p[side].stop - p[side].start for p in pieces], [p[side].start for p in pieces]
        assert starts == sorted(starts) and all(i < n for i in starts)
        if side == 2 or not by_target: assert max(lengths) - min(lengths) <= 1
    assert len(pieces) == 1 or len(pieces) >= whole/max(known)


def test_a_long_word_is_its_pieces_and_shared_tokens_get_the_mean():
    adapter, g = fit(max_tokens=2, center=True), torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, D, generator=g)
    assert adapter.pieces(4, 3) == [(2, slice(0, 2), slice(0, 1)), (2, slice(2, 4), slice(1, 3))]
    y = adapter.predict(x, 3)
    assert_close(y[:, :1], adapter.push(x[:, :2], (2, 1))[:, :1]); assert_close(y[:, 1:], adapter.push(x[:, 2:], (2, 2)))
    shared = adapter.predict(x, 1)                   # two pieces, one target token
    assert_close(shared, (adapter.push(x[:, :2], (2, 1))[:, :1] + adapter.push(x[:, 2:], (2, 1))[:, :1])/2)


def test_an_empty_class_is_reported_and_falls_back():
    s, t, spelled, _ = world([(1, 1), (3, 3)], max)
    adapter = fit(s, t, words=spelled, classes="larger", max_tokens=4)
    assert [row["fitted"] for row in adapter.coverage["classes"].values()] == [True, False, True, False] and sorted(adapter.tensors) == [1, 3]
    x = torch.randn(5, 2, D, generator=torch.Generator().manual_seed(0))
    assert_close(adapter.predict(x, 2), torch.cat([adapter.push(x[:, :1]), adapter.push(x[:, 1:])], 1))
    assert_close(bare_without_one(adapter).predict(x, 2), adapter.push(torch.nn.functional.pad(x, (0, 0, 0, 1)))[:, :2])
    assert [p[0] for p in adapter.pieces(4, 4)] == [1, 1, 1, 1] and adapter.coverage["beyond"]["words"] == 0
    two = Spellings([*spelled.words, "long"], np.full(len(spelled.words) + 1, 1.0), spelled.groups | {(5, 2): (torch.tensor([len(spelled.words)]), torch.tensor([0]), torch.arange(5)[None], torch.arange(2)[None])})
    assert fit(s, t, words=two, classes="larger").coverage["beyond"]["words"] == 1


def bare_without_one(adapter): return FuseAdapter({l: T for l, T in adapter.tensors.items() if l > 1}, adapter.config)


def test_coverage_counts_every_word_once():
    words = some_words(300, 8)
    adapter = fit(words=words, frequencies=np.arange(300) + 1.0, max_tokens=3)
    c, larger = adapter.coverage, [max(len(i) for i in ids) for ids in zip(word_ids(BPE, words), word_ids(WORDPIECE, words))]
    assert [row["words"] for row in c["classes"].values()] == [larger.count(l) for l in (1, 2, 3)]
    assert c["beyond"]["words"] == sum(n > 3 for n in larger) > 0 and c["unspelled"] == 0
    assert abs(sum(row["share_weighted"] for row in [*c["classes"].values(), c["beyond"]]) - 1) < 1e-5


# ---------------------------------------------------------------- bad input

def test_fewer_words_than_dimensions_warn_and_work():
    with pytest.warns(ConditionWarning, match="fewer spellings than the source's 8 dimensions"):
        adapter = FuseAdapter.fit(source(), target(), words=some_words(6, 2), ridge=0.1)
    assert all(torch.isfinite(T).all() for T in adapter.tensors.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["source", "target"])
def test_embeddings_that_are_not_finite(side, value):
    models = dict(source=source(), target=target())
    i = word_ids(models[side].tokenizer, ["ab"])[0][0]
    models[side].embedding_table[i, 2] = value
    with pytest.raises(ValueError, match=f"{side} .*embedding_table.*NaN.*token {i} "): fit(*models.values(), words=[*some_words(50), "ab"])
    models[side].embedding_table[i, 2] = 0.0         # a row that no word uses is nobody's business
    models[side].embedding_table[0] = value
    assert fit(*models.values(), words=some_words(50))


BAD = [("words", []), ("words", ["two words"]), ("words", [""]), ("words", [3]), ("max_tokens", 0), ("max_tokens", 2.0), ("max_tokens", True), ("ridge", -1.0), ("ridge", "best"),
       ("ridge", float("nan")), ("ridge", {1: -2.0}), ("classes", "best"), ("frequencies", [1.0]), ("frequencies", [-1.0]*400), ("frequencies", [0.0]*400), ("frequencies", [float("nan")]*400),
       ("forms", ()), ("forms", ("upper",)), ("weighting", -0.5), ("weighting", float("inf")), ("holdout", 0.5), ("holdout", -0.1), ("chunk", 0), ("chunk", 1.5)]


@pytest.mark.parametrize("name,value", BAD, ids=[f"{n}={str(v)[:20]}" for n, v in BAD])
def test_a_bad_option_is_named(name, value):
    with pytest.raises(ValueError, match=name): fit(**{name: value})


def test_bad_models_and_tubes_are_named():
    adapter, g = fit(), torch.Generator().manual_seed(0)
    for bad in (SimpleNamespace(tokenizer=BPE, name="x"), SimpleNamespace(tokenizer=BPE, name="x", embedding_table=torch.zeros(3, dtype=torch.long))):
        with pytest.raises(TypeError, match="target"): fit(source(), bad)
    with pytest.raises(ValueError, match="source .*has 20 rows"): fit(model(D, rows=20, name="source"), target())
    for call in (adapter.push, lambda x: adapter.push(x.mT.contiguous()), adapter.pullback):
        with pytest.raises(ValueError, match="tube"): call(torch.randn(3, 2, 7, generator=g))
    for x, pair in ((torch.zeros(3, 9, D), None), (torch.zeros(3, 1, D), next(iter(adapter.pairs))), (torch.zeros(2, D), None)):
        with pytest.raises(ValueError, match="tube"): adapter.push(x, pair)
    with pytest.raises(ValueError, match="n_source and n_target"): adapter.pieces(0, 1)
    for rank in (0, True, 1.5):
        with pytest.raises(ValueError, match="rank"): adapter.compress(rank=rank)
    with pytest.raises(ValueError, match="max_tokens = 1"): fit(words=["kkkkkkkkkkk"], max_tokens=1)


# ---------------------------------------------------------------- files and cache

def same(a, b):
    return (a.config == b.config and torch.equal(a.mean, b.mean) and all(set(x) == set(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
            for x, y in ((a.tensors, b.tensors), (a.pairs, b.pairs), (a.biases, b.biases))))


@pytest.mark.parametrize("form", [dict(), dict(dtype=torch.float16), dict(rank=2), dict(rank=1, dtype=torch.float16)])
def test_a_saved_adapter_comes_back_bit_for_bit(tmp_path, form):
    adapter = fit(center=True, ridge={1: 0.5, 2: 0.0}).compress(**form)
    assert adapter.pairs and adapter.biases
    back = FuseAdapter.from_pretrained(adapter.save_pretrained(tmp_path/"a"), source(), target())
    assert same(adapter, back) and back.nbytes == adapter.nbytes and sorted(p.name for p in (tmp_path/"a").iterdir()) == sorted(sharing_room.FILES)
    x = torch.randn(3, 2, D, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapter.push(x, (2, 2)), back.push(x, (2, 2)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return fit().save_pretrained(tmp_path_factory.mktemp("saved")/"a")


@pytest.fixture
def copy(folder, tmp_path): return shutil.copytree(folder, tmp_path/"copy")


def flip(file, at):
    data = bytearray(file.read_bytes()); data[at] ^= 1; file.write_bytes(data)


def alter(copy, **changes):
    config = json.loads((copy/"config.json").read_text()); (copy/"config.json").write_text(json.dumps(config | changes))


DAMAGE = {"one bit of the tensors": (lambda f: flip(f/"adapter.safetensors", -9), ValueError, "altered"), "tensors cut short": (lambda f: (f/"adapter.safetensors").write_bytes((f/"adapter.safetensors").read_bytes()[:-50]), ValueError, "cut short"),
          "config cut short": (lambda f: (f/"config.json").write_text((f/"config.json").read_text()[:-40]), ValueError, "not JSON"), "config altered": (lambda f: alter(f, seed=7), ValueError, "config.json is not the one"),
          "another format": (lambda f: alter(f, format="other/9"), ValueError, "other/9"), "no tensors": (lambda f: (f/"adapter.safetensors").unlink(), FileNotFoundError, "adapter.safetensors"),
          "no config": (lambda f: (f/"config.json").unlink(), FileNotFoundError, "config.json")}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(copy, damage):
    harm, error, said = DAMAGE[damage]
    assert FuseAdapter.from_pretrained(copy)
    harm(copy)
    with pytest.raises(error, match=said): FuseAdapter.from_pretrained(copy)


@pytest.mark.parametrize("other,said", [(lambda: model(D + 1, BPE, seed=1), "source embedding width"), (lambda: model(D, BPE, rows=V + 1, seed=1), "source vocabulary size"),
                                        (lambda: model(D, BPE, seed=7), "source model: the embeddings"), (lambda: model(D, WORDPIECE, seed=1), "source tokenizer")])
def test_other_models_are_refused(folder, other, said):
    assert FuseAdapter.from_pretrained(folder, source(), target()).source is not None
    with pytest.raises(ValueError, match=said): FuseAdapter.from_pretrained(folder, other(), target())
    with pytest.raises(ValueError, match="target"): FuseAdapter.from_pretrained(folder, target=source())


def test_no_adapter_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor"): FuseAdapter.from_pretrained(tmp_path/"nothing")


def test_a_failed_write_leaves_what_was_there(copy, monkeypatch):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    def full(*args, **kwargs): raise OSError("no space left")
    monkeypatch.setattr(sharing_room, "save_file", full)
    with pytest.raises(OSError, match="no space"): fit(seed=3).save_pretrained(copy)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def test_files_are_written_aside_and_a_stop_between_them_is_noticed(copy, monkeypatch):
    other, before, real, done = fit(seed=3), {p.name: p.read_bytes() for p in copy.iterdir()}, sharing_room.os.replace, []
    def stop(*paths):
        if len(done) == allowed: raise OSError("stopped")
        done.append(paths); real(*paths)
    monkeypatch.setattr(sharing_room.os, "replace", stop)
    for allowed in (0, 1):
        with pytest.raises(OSError, match="stopped"): other.save_pretrained(copy)
        assert sorted(p.name for p in copy.iterdir()) == sorted(sharing_room.FILES)
        assert ({p.name: p.read_bytes() for p in copy.iterdir()} == before) == (allowed == 0)
    with pytest.raises(ValueError, match="altered"): FuseAdapter.from_pretrained(copy)


def test_the_cache_saves_the_second_fit(monkeypatch):
    words, fits, real = some_words(200), [], FuseAdapter.fit
    monkeypatch.setattr(FuseAdapter, "fit", lambda *a, **k: (fits.append(k), real(*a, **k))[1])
    def get(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConditionWarning)
            return FuseAdapter.cached(source(), target(), words=words, **options)
    one, two = get(), get()
    assert same(one, two) and len(fits) == 1 and (two.source.name, two.target.name) == ("source", "target")
    for n, options in enumerate([dict(classes="larger"), dict(weighting=0.5), dict(ridge={1: 0.1}), dict(seed=1), dict(frequencies=np.arange(200) + 1.0), dict(words_changed=True)], 2):
        if options.pop("words_changed", False): words = words[:-1]
        get(**options); get(**options)
        assert len(fits) == n
    for forms in (FORMS, FORMS[:1]):                 # what `spell` made of a list, too
        words = spell(source(), target(), some_words(200), forms=forms)
        assert same(get(), get())
    assert len(fits) == 9
    models = [source(), target()]
    for n, m in enumerate(models, 10):               # another source, and then another target
        m.embedding_table = m.embedding_table*2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConditionWarning)
            FuseAdapter.cached(*models, words=words)
        assert len(fits) == n


def test_a_damaged_cache_fits_again(tmp_path, caplog):
    def get(): return fit_cached()
    one = get()
    file, = (tmp_path/"cache").rglob("adapter.safetensors")
    flip(file, -1)
    two = get()
    assert all(torch.equal(one.tensors[l], two.tensors[l]) for l in one.tensors) and "damaged" in caplog.text
    assert same(two, get())                          # and the cache is whole again


def fit_cached():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        return FuseAdapter.cached(source(), target(), words=some_words(200))


# ---------------------------------------------------------------- storage

def test_error_falls_with_rank_and_is_the_tail_of_the_spectrum():
    s, t = model(12, BPE, seed=1, name="source"), model(10, WORDPIECE, seed=2, name="target")
    adapter, errors, sizes = fit(s, t), [], []
    for rank in (1, 2, 3, 4, 5):
        small = adapter.compress(rank)
        for k, T in {**adapter.tensors, **adapter.pairs}.items():
            cut = (small.tensors | small.pairs)[k]
            full = [frequencies(x.double()) for x in (T, cut)]
            l, weights = T.shape[-1], [1 if i == 0 or (T.shape[-1] % 2 == 0 and i == len(full[0]) - 1) else 2 for i in range(len(full[0]))]
            tail = sum(w*torch.linalg.svdvals(f)[rank:].square().sum() for w, f in zip(weights, full[0]))/l   # Parseval, then Eckart and Young
            assert_close((T.double() - cut.double()).square().sum(), tail, rtol=1e-4, atol=1e-8)
            assert all(torch.linalg.matrix_rank(c, rtol=1e-4) <= rank for c in full[1])
        errors.append(sum((adapter.tensors[l] - small.tensors[l]).square().sum().item() for l in adapter.tensors)); sizes.append(small.nbytes)
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]/2 and sizes == sorted(sizes) and sizes[-1] < adapter.nbytes
    assert all(torch.equal(adapter.compress(6).tensors[l], T) for l, T in adapter.tensors.items())   # rank 6 would cost more than the whole: kept whole
    assert adapter.compress(dtype=torch.float16).nbytes < 0.51*adapter.nbytes


def test_a_rank_for_words_changes_their_predictions_least():
    s, t = model(12, BPE, seed=1, name="source"), model(10, WORDPIECE, seed=2, name="target")
    s.embedding_table *= torch.logspace(0.5, -0.5, 12)   # some directions matter more than others
    words = some_words(400)
    adapter, spelled = fit(s, t, words=words, classes="larger"), spell(s, t, words)
    for l, T in adapter.tensors.items():
        X = torch.cat([adapter_room.tubes(s.embedding_table, S, l) for ab, (_, _, S, _) in spelled.groups.items() if max(ab) == l]).double()
        Y = tprod(X, T.double())
        def changed(small): return (Y - tprod(X, small.tensors[l].double())).square().sum().item()
        for rank in (1, 2, 3):
            weights = [1 if i == 0 or (l % 2 == 0 and i == l//2) else 2 for i in range(l//2 + 1)]
            least = sum(w*torch.linalg.svdvals(f)[rank:].square().sum().item() for w, f in zip(weights, frequencies(Y)))/l   # no map of this rank can do better
            assert 0.999*least < changed(adapter.compress(rank, words=spelled)) < min(1.05*least, changed(adapter.compress(rank)))
