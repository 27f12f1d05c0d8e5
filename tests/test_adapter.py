"""Chapter 05: fit, use and storage of the adapter, in worlds with a known answer and with the packaged models."""
import json, logging, math, os, warnings
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from fuse_nb import adapter as chapter
from fuse_nb.adapter import FORMS, FuseAdapter, Spellings, fingerprint, ridge_path, shrink, spell
from fuse_nb.models import installed
from fuse_nb.pseudoinverse import ConditionWarning, GramAccumulator, tlstsq
from fuse_nb.tproduct import tprod, ttranspose
from fuse_nb.words import coverage, word_list

quick = settings(max_examples=25, deadline=None)


class Letters:
    "A slow tokenizer, without offsets: every character but the space is a token."
    is_fast, unk_token_id, all_special_ids, added_tokens_decoder = False, None, [], {}
    def __init__(self, letters="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"): self.ids = {c: i for i, c in enumerate(letters)}
    def get_vocab(self): return self.ids
    def decode(self, ids): return "".join({i: c for c, i in self.ids.items()}[int(i)] for i in ids)
    def one(self, text): return [self.ids[c] for c in text if c in self.ids]
    def __call__(self, text, add_special_tokens=False, **_): return dict(input_ids=self.one(text) if isinstance(text, str) else [self.one(t) for t in text])


class Own(Letters):
    "Every word is spelled by tokens that no other word has, as many as it has letters."
    def __init__(self, words):
        self.of, self.ids = {}, {"a": 0}
        for w in words:
            for k in range(len(w)): self.ids[f"{w}#{k}"] = len(self.ids)
    def one(self, text): return [i for w in text.split() for i in ([0] if w == "a" else [self.ids[f"{w}#{k}"] for k in range(len(w)) if f"{w}#{k}" in self.ids])]


def model(tokenizer, table, name="m"): return SimpleNamespace(tokenizer=tokenizer, embedding_table=table, name=name)


def random_words(n, lengths, seed=0, letters="bcdefghijklmnopqrstuvwxyz"):
    rng, found = np.random.default_rng(seed), dict()
    while len(found) < n:
        w = "".join(rng.choice(list(letters), size=rng.choice(lengths)))
        found[w] = None
    return list(found)


def world(words, d_source=8, d_target=6, lengths=(1, 2, 3), noise=0.0, seed=0):
    "Two models of which the second's embeddings of a word are x * T_l of the first's, plus noise; and the tensors T_l."
    g = torch.Generator().manual_seed(seed)
    source = model(Letters(), torch.randn(52, d_source, generator=g), "letters")
    T = {l: torch.randn(d_source, d_target, l, generator=g)/math.sqrt(d_source*l) for l in lengths}
    own = Own(words)
    table = torch.zeros(len(own.ids), d_target)
    for w in words:
        x = source.embedding_table[source.tokenizer.one(w)].T[None]
        table[own.one(w)] = tprod(x, T[len(w)])[0].T
    return source, model(own, table + noise*torch.randn(table.shape, generator=g), "own"), T


@pytest.fixture(scope="module")
def small():
    "A fitted adapter of a noisy little world, and its words."
    words = random_words(600, (1, 2, 2, 3, 3), seed=1)
    source, target, _ = world(words, noise=0.3)
    return FuseAdapter.fit(source, target, words, max_tokens=3, forms=("text",)), source, target, words


@pytest.fixture(scope="module")
def two_spellings():
    "Models whose words have different token counts: letters against pairs of letters."
    class Bigrams(Letters):
        def __init__(self): self.ids = {c: i for i, c in enumerate([x + y for x in "abcdefgh" for y in ["", *"abcdefgh"]])}
        def one(self, text): return [self.ids[w[i:i + 2]] for w in text.split() for i in range(0, len(w), 2) if w[i:i + 2] in self.ids]
    g = torch.Generator().manual_seed(3)
    letters, pairs = Letters("abcdefgh"), Bigrams()
    E = torch.randn(8, 5, generator=g)
    F = torch.stack([E[letters.one(p)].mean(0) for p in pairs.ids]) @ torch.randn(5, 4, generator=g) + 0.1*torch.randn(len(pairs.ids), 4, generator=g)
    return model(letters, E, "letters"), model(pairs, F, "bigrams"), random_words(500, (1, 2, 3, 4, 5, 6), seed=2, letters="bcdefgh")


# ---- the algebra of the fit

def some_words(l, n=40, d=5, e=3, seed=0, mean=0.0):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, l, generator=g, dtype=torch.float64) + mean
    return X, tprod(X, torch.randn(d, e, l, generator=g, dtype=torch.float64)) + torch.randn(n, e, l, generator=g, dtype=torch.float64) + mean


def sums(X, Y, **k): return GramAccumulator(X.shape[1], Y.shape[1], X.shape[2]).update(X, Y, **k)


@quick
@given(l=st.integers(1, 6), seed=st.integers(0, 100), center=st.booleans(), shrunk=st.booleans())
def test_ridge_path_is_what_fitting_and_scoring_each_ridge_gives(l, seed, center, shrunk):
    train, held = sums(*some_words(l, seed=seed, mean=1.0)), sums(*some_words(l, n=15, seed=seed + 1, mean=1.0))
    prior = torch.randn(5, 3, l, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) if shrunk else None
    ridges = [1e-6, 0.01, 0.3, 5.0]
    for r, got in zip(ridges, ridge_path(train, held, ridges, prior, center)):
        T = shrink(train, r, prior, center)
        assert got == pytest.approx(held.r2(T, held.bias(T) if center else None), abs=1e-8)


@quick
@given(l=st.integers(1, 5), seed=st.integers(0, 100), ridge=st.sampled_from([1e-3, 0.1, 2.0]))
def test_shrink_minimizes_what_it_says(l, seed, ridge):
    X, Y = some_words(l, seed=seed)
    P = torch.randn(5, 3, l, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lam = ridge*X.square().sum().item()/5              # the mean diagonal of the l Gram matrices is |X|^2/d
    assert_close(shrink(sums(X, Y), ridge, P), P + tlstsq(X, Y - tprod(X, P), ridge=lam), atol=1e-8, rtol=1e-8)


def test_shrink_goes_from_least_squares_to_the_prior():
    X, Y = some_words(3)
    P = torch.ones(5, 3, 3, dtype=torch.float64)
    assert_close(shrink(sums(X, Y), 1e9, P), P, atol=1e-6, rtol=0)
    assert_close(shrink(sums(X, Y), 1e-12, P), tlstsq(X, Y), atol=1e-6, rtol=0)
    assert_close(shrink(sums(X, Y), 0.1), sums(X, Y).solve(0.1))


# ---- worlds with a known answer

@pytest.mark.parametrize("ridge", ["auto", 0.0])
@pytest.mark.parametrize("classes", ["pairs", "larger", "target"])
def test_an_exact_t_linear_image_is_recovered(ridge, classes):
    words = random_words(900, (1, 2, 3), seed=5)
    source, target, T = world(words)
    adapter = FuseAdapter.fit(source, target, words, max_tokens=3, ridge=ridge, classes=classes, forms=("text",))
    for l, t in T.items():
        assert adapter.tensors[l].shape == t.shape
        assert (adapter.tensors[l] - t).norm()/t.norm() < 1e-4
    assert adapter.coverage["held_out"]["r2"] > 1 - 1e-6


def test_with_noise_the_error_falls_as_theory_predicts():
    "|T - T_true|^2 = sigma^2 d_target sum_f tr(G_f^-1), so one over the number of words."
    ratios, errors = [], []
    for n in (400, 1600, 6400):
        for seed in range(3):
            words = random_words(n, (3,), seed=seed)
            source, target, T = world(words, lengths=(3,), noise=0.2, seed=seed)
            adapter = FuseAdapter.fit(source, target, words, max_tokens=3, ridge=0.0, holdout=0.0, forms=("text",))
            X = chapter._tubes(source.embedding_table, torch.tensor([source.tokenizer.one(w) for w in words]), 3)
            F = torch.fft.fft(X.double()).permute(2, 0, 1)
            theory = 0.2**2*6*sum(torch.linalg.inv(f.mH @ f).diagonal().sum().real for f in F)
            errors.append((adapter.tensors[3] - T[3]).norm().item()**2)
            ratios.append(errors[-1]/theory.item())
    assert 0.8 < np.mean(ratios) < 1.2
    assert 12 < np.mean(errors[:3])/np.mean(errors[-3:]) < 21      # 16 times the words


def test_ridge_rises_where_words_are_few_or_noisy():
    words = random_words(1500, (2,), seed=8)
    chosen = [FuseAdapter.fit(*world(words[:n], lengths=(2,), noise=s)[:2], words[:n], max_tokens=2, forms=("text",)).coverage["classes"][2]["ridge"] for n, s in ((1500, 0.01), (1500, 3.0), (80, 3.0))]
    assert chosen[0] < chosen[1] < chosen[2]


def test_ridge_is_chosen_for_each_class_or_given(small):
    adapter, source, target, words = small
    given = FuseAdapter.fit(source, target, words, max_tokens=3, forms=("text",), ridge={2: 0.5}, classes="larger")
    rows = given.coverage["classes"]
    assert rows[2]["ridge"] == 0.5 and rows[3]["ridge"] == adapter.coverage["classes"][3]["ridge"]
    assert not torch.allclose(given.tensors[2], adapter.tensors[2])


def test_the_tensor_is_the_ridge_solution_of_the_words_that_are_not_held_out(small):
    adapter, source, target, words = small
    order, n = np.random.default_rng(0).permutation(len(words)), round(0.1*len(words))
    used = sorted(set(range(len(words))) - set(order[n:2*n].tolist()))
    mine = [words[i] for i in used if len(words[i]) == 3]
    X, Y = (chapter._tubes(m.embedding_table, torch.tensor([m.tokenizer.one(w) for w in mine]), 3).double() for m in (source, target))
    ridge = adapter.coverage["classes"][3]["ridge"]
    assert_close(adapter.tensors[3].double(), tlstsq(X, Y, ridge=ridge*X.square().sum().item()/8), atol=2e-5, rtol=1e-4)


def test_weighting_is_weighted_least_squares():
    words = random_words(200, (1, 2), seed=4)
    source, target, _ = world(words, noise=0.5)
    f = np.random.default_rng(0).uniform(0.1, 3, len(words))
    got = FuseAdapter.fit(source, target, words, max_tokens=2, forms=("text",), frequencies=f, weighting=0.5, ridge=0.0, holdout=0.0, classes="larger").tensors[2]
    mine = [i for i, w in enumerate(words) if len(w) == 2]
    X, Y = (chapter._tubes(m.embedding_table, torch.tensor([m.tokenizer.one(words[i]) for i in mine]), 2).double()*torch.tensor(f[mine])[:, None, None]**0.25 for m in (source, target))
    assert_close(got.double(), tlstsq(X, Y), atol=1e-4, rtol=1e-3)


def test_centring_adds_a_bias_to_push_and_nothing_to_pullback(small):
    _, source, target, words = small
    far = model(target.tokenizer, target.embedding_table + 5.0, "far")
    plain, centred = (FuseAdapter.fit(source, far, words, max_tokens=3, forms=("text",), center=c) for c in (False, True))
    assert centred.coverage["held_out"]["r2"] > plain.coverage["held_out"]["r2"]
    zero = centred.push(torch.zeros(1, 2, 8))
    assert_close(zero[0], centred.biases[2].T) and zero.abs().min() > 1
    assert_close(centred.pullback(torch.zeros(1, 2, 6)), torch.zeros(1, 2, 8))


# ---- classes, pieces, long words

@quick
@given(a=st.integers(1, 30), b=st.integers(1, 30), have=st.sets(st.integers(1, 8), min_size=1), by=st.sampled_from(["pairs", "larger", "target"]))
def test_pieces_cover_every_token_in_order_with_classes_that_exist(a, b, have, by):
    config = dict(max_tokens=max(have), classes=by, source=dict(d=2, name=""), target=dict(d=2, name=""))
    adapter = FuseAdapter({l: torch.zeros(2, 2, l) for l in have}, config)
    if 1 not in have:
        try: adapter.pieces(a, b)
        except ValueError: return
    pieces = adapter.pieces(a, b)
    need = b if by == "target" else max(a, b)
    if need in have: assert len(pieces) == 1 and pieces[0][0] == need
    if have == set(range(1, max(have) + 1)) and by != "target": assert len(pieces) == -(-need//max(have))
    for l, s, t in pieces: assert l in have and s.stop - s.start <= l and t.stop - t.start <= l and s.stop > s.start and t.stop > t.start
    sides = [1, 2] if by != "target" else [2]
    for k in sides:
        n = (None, a, b)[k]
        cuts = [p[k] for p in pieces]
        assert cuts[0].start == 0 and cuts[-1].stop == n and sorted({i for c in cuts for i in range(c.start, c.stop)}) == list(range(n))
        assert all(x.start <= y.start for x, y in zip(cuts, cuts[1:]))
        if len(pieces) <= n: assert all(x.stop == y.start for x, y in zip(cuts, cuts[1:])) and max(c.stop - c.start for c in cuts) - min(c.stop - c.start for c in cuts) <= 1


def test_a_long_word_is_taken_in_pieces(two_spellings):
    source, target, words = two_spellings
    adapter = FuseAdapter.fit(source, target, words, max_tokens=4, forms=("text",))
    assert [(l, s.start, s.stop, t.start, t.stop) for l, s, t in adapter.pieces(6, 3)] == [(3, 0, 3, 0, 1), (3, 3, 6, 1, 3)]
    x = torch.randn(7, 6, 5)
    got, pad = adapter.predict(x, 3), torch.nn.functional.pad
    assert_close(got[:, :1], adapter.push(x[:, :3], (3, 1))[:, :1])
    assert_close(got[:, 1:], adapter.push(x[:, 3:], (3, 2))[:, :2])
    shared = adapter.predict(x, 1)                        # two pieces, one target token: their mean
    assert_close(shared, (adapter.push(x[:, :3], (3, 1))[:, :1] + adapter.push(x[:, 3:], (3, 1))[:, :1])/2)
    held = adapter.coverage["beyond"]
    assert held["words"] == sum(len(w) > 4 for w in words) and held["share"] == pytest.approx(held["words"]/len(words), abs=1e-6)
    assert all(r["r2"] > 0 for r in adapter.coverage["held_out_beyond"])


def test_an_empty_class_is_reported_and_falls_back(two_spellings):
    source, target, words = two_spellings
    fewer = [w for w in words if len(w) != 2] + ["bc"]      # one word of two letters, which is held out: nothing to fit from
    seed = next(s for s in range(99) if len(fewer) - 1 in np.random.default_rng(s).permutation(len(fewer))[round(.1*len(fewer)):2*round(.1*len(fewer))])
    adapter = FuseAdapter.fit(source, target, fewer, max_tokens=4, forms=("text",), seed=seed)
    assert sorted(adapter.tensors) == [1, 3, 4]
    row = adapter.coverage["classes"][2]
    assert row["fitted"] is False and row["words"] == 1 and adapter.coverage["fallback"]["words"] == 1
    assert [l for l, *_ in adapter.pieces(2, 1)] == [1, 1]
    assert FuseAdapter({3: adapter.tensors[3]}, adapter.config).pieces(2, 2) == [(3, slice(0, 2), slice(0, 2))]


def test_pairs_have_tensors_of_their_own_where_words_suffice(two_spellings):
    source, target, words = two_spellings
    pairs = FuseAdapter.fit(source, target, words, max_tokens=4, forms=("text",))
    larger = FuseAdapter.fit(source, target, words, max_tokens=4, forms=("text",), classes="larger")
    assert not larger.pairs and pairs.pairs and all(T.shape == (5, 4, max(k)) for k, T in pairs.pairs.items())
    for l in pairs.tensors: assert_close(pairs.tensors[l], larger.tensors[l], atol=1e-4, rtol=1e-3)
    x = torch.randn(3, 2, 5)
    key = next(k for k in pairs.pairs if max(k) == 2)
    assert_close(pairs.push(x, key), tprod(x.mT, pairs.pairs[key]).mT, atol=1e-5, rtol=1e-4)
    assert_close(pairs.push(x), tprod(x.mT, pairs.tensors[2]).mT, atol=1e-5, rtol=1e-4)
    assert_close(pairs.push(x, (1, 1)), pairs.push(x))       # no such pair at this length: the class


def test_the_papers_classes_cut_or_pad_the_source(two_spellings):
    source, target, words = two_spellings
    adapter = FuseAdapter.fit(source, target, words, max_tokens=2, forms=("text",), classes="target", holdout=0.0, ridge=0.1)
    mine = [w for w in words if len(target.tokenizer.one(w)) == 2]
    S, T = ([m.tokenizer.one(w)[:2] for w in mine] for m in (source, target))
    X, Y = (chapter._tubes(m.embedding_table, torch.tensor(i), 2).double() for m, i in ((source, S), (target, T)))
    assert_close(adapter.tensors[2].double(), tlstsq(X, Y, ridge=0.1*X.square().sum().item()/5), atol=1e-4, rtol=1e-3)
    assert adapter.pieces(4, 2) == [(2, slice(0, 2), slice(0, 2))] and adapter.pieces(1, 2) == [(2, slice(0, 1), slice(0, 2))]


# ---- push and pullback

@quick
@given(l=st.integers(1, 7), n=st.integers(0, 5), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_push_is_the_t_product_and_pullback_its_adjoint(l, n, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    T = torch.randn(5, 4, l, generator=g, dtype=torch.float64)
    adapter = FuseAdapter({l: T}, dict(max_tokens=l, classes="larger", source=dict(d=5, name=""), target=dict(d=4, name="")))
    x = torch.randn(n, l, 5, generator=g, dtype=dtype, requires_grad=True)
    y = torch.randn(n, l, 4, generator=g, dtype=dtype)
    out = adapter.push(x)
    assert out.dtype == dtype
    out.backward(y)
    assert_close(out.detach().double(), tprod(x.detach().double().mT, T).mT, atol=1e-5, rtol=1e-4)
    assert_close(adapter.pullback(y), x.grad, atol=1e-5, rtol=1e-5)
    assert_close(adapter.pullback(y).double(), tprod(y.double().mT, ttranspose(T)).mT, atol=1e-5, rtol=1e-4)


def test_the_slice_reversal_matters_from_three_tokens_on(small):
    adapter = small[0]
    g = torch.randn(4, 3, 6)
    wrong = tprod(g.mT, adapter.tensors[3].transpose(0, 1)).mT
    assert not torch.allclose(adapter.pullback(g), wrong, atol=1e-2)


def test_push_and_pullback_say_what_does_not_fit(small):
    adapter = small[0]
    for call in (lambda: adapter.push(torch.zeros(2, 3, 7)), lambda: adapter.pullback(torch.zeros(2, 3, 7)), lambda: adapter.push(torch.zeros(3, 8)), lambda: adapter.push(torch.zeros(2, 9, 8))):
        with pytest.raises(ValueError, match="tube"): call()
    for a, b in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"): adapter.pieces(a, b)


def test_half_precision_is_computed_in_float32(small):
    adapter = small[0]
    half = adapter.to(dtype=torch.float16)
    assert half.tensors[2].dtype == torch.float16 and half.nbytes < 0.6*adapter.nbytes
    x = torch.randn(4, 2, 8)
    assert_close(half.push(x), adapter.push(x), atol=1e-2, rtol=1e-2)
    assert half.push(x.half()).dtype == torch.float16


# ---- fit: options, chunks, seeds, coverage

def test_chunks_and_seeds(small):
    adapter, source, target, words = small
    again = FuseAdapter.fit(source, target, words, max_tokens=3, forms=("text",))
    chunked = FuseAdapter.fit(source, target, words, max_tokens=3, forms=("text",), chunk=7)
    other = FuseAdapter.fit(source, target, words, max_tokens=3, forms=("text",), seed=1)
    for l, T in adapter.tensors.items():
        assert torch.equal(T, again.tensors[l])
        assert_close(T, chunked.tensors[l], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(T, other.tensors[l], atol=1e-4)


def test_coverage_counts_every_word(two_spellings):
    source, target, words = two_spellings
    f = np.linspace(1, 2, len(words))
    c = FuseAdapter.fit(source, target, words, max_tokens=4, forms=("text",), frequencies=f).coverage
    n = np.array([len(w) for w in words])
    for l in range(1, 5):
        row = c["classes"][l]
        assert row["words"] == (n == l).sum() and row["share_weighted"] == pytest.approx(f[n == l].sum()/f.sum(), abs=1e-6)
    assert sum(r["words"] for r in c["classes"].values()) + c["beyond"]["words"] + c["unspelled"] == len(words)
    assert c["beyond"]["share_weighted"] == pytest.approx(f[n > 4].sum()/f.sum(), abs=1e-6)
    assert c["held_out"]["words"] == round(0.1*len(words))


def test_spell_groups_words_by_both_counts(two_spellings):
    source, target, words = two_spellings
    s = spell(source, target, words, forms=("text",))
    for (a, b), (word, form, S, T) in s.groups.items():
        assert S.shape == (len(word), a) and T.shape == (len(word), b) and (form == 0).all()
        for i, ids, jds in zip(word.tolist(), S.tolist(), T.tolist()): assert ids == source.tokenizer.one(words[i]) and jds == target.tokenizer.one(words[i])
    assert sum(len(g[0]) for g in s.groups.values()) == len(words)
    letters = model(Letters(), torch.randn(52, 3))
    capital = spell(letters, letters, ["bcd"], forms=("text", "capital", "start"))
    assert capital.groups[3, 3][2].tolist() == [letters.tokenizer.one(w) for w in ("bcd", "Bcd", "bcd")]


@pytest.mark.parametrize("options, said", [
    (dict(max_tokens=0), "max_tokens"), (dict(max_tokens=2.5), "max_tokens"), (dict(classes="both"), "classes"), (dict(ridge=-1.0), "ridge"), (dict(ridge="best"), "ridge"), (dict(ridge=math.nan), "ridge"),
    (dict(holdout=0.6), "holdout"), (dict(weighting=-1), "weighting"), (dict(chunk=0), "chunk"), (dict(forms=("loud",)), "forms"), (dict(forms=()), "forms"), (dict(words=[]), "words"),
    (dict(words=["two words"]), "words"), (dict(words=[""]), "words"), (dict(words=["b", 3]), "words"), (dict(words=["bcd"], frequencies=[1, 2]), "frequencies"), (dict(words=["bcd"], frequencies=[-1.0]), "frequencies"),
    (dict(words=["bcdefg"], max_tokens=2), "max_tokens")])
def test_options_that_do_not_serve(small, options, said):
    _, source, target, words = small
    letters = model(Letters(), torch.randn(52, 3))
    with pytest.raises(ValueError, match=said): FuseAdapter.fit(letters, letters, **(dict(words=["bcd", "fgh"]) | options))


def test_embeddings_that_are_not_finite(small):
    _, source, target, words = small
    for bad in (math.nan, math.inf):
        table = source.embedding_table.clone()
        table[source.tokenizer.ids["c"], 2] = bad
        with pytest.raises(ValueError, match=r"source 'broken'.*'c'"): FuseAdapter.fit(model(source.tokenizer, table, "broken"), target, words, max_tokens=3, forms=("text",))
        table = target.embedding_table.clone()
        table[5] = bad
        with pytest.raises(ValueError, match="target 'broken'"): FuseAdapter.fit(source, model(target.tokenizer, table, "broken"), words, max_tokens=3, forms=("text",))
    unused = source.embedding_table.clone()
    unused[source.tokenizer.ids["Z"]] = math.nan            # no word has it
    FuseAdapter.fit(model(source.tokenizer, unused), target, words, max_tokens=3, forms=("text",))


def test_models_that_are_none(small):
    _, source, target, words = small
    with pytest.raises(TypeError, match="source must have.*embedding_table"): FuseAdapter.fit(SimpleNamespace(tokenizer=Letters(), name="x"), target, words)
    with pytest.raises(TypeError, match="embedding_table must be"): FuseAdapter.fit(source, model(Letters(), [[1.0]]), words)
    with pytest.raises(ValueError, match="token .* rows"): FuseAdapter.fit(model(Letters(), torch.randn(5, 3)), target, words, forms=("text",))


def test_fewer_words_than_dimensions_works_and_warns():
    words = random_words(30, (1, 2), seed=3)
    source, target, _ = world(words, d_source=40, noise=0.1)
    with pytest.warns(ConditionWarning, match="fewer spellings than the source's 40 dimensions"): adapter = FuseAdapter.fit(source, target, words, max_tokens=2, forms=("text",))
    assert all(torch.isfinite(T).all() for T in adapter.tensors.values()) and all(r["ridge"] > 0 for r in adapter.coverage["classes"].values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        assert torch.isfinite(FuseAdapter.fit(source, target, ["b"], max_tokens=2, forms=("text",)).tensors[1]).all() if "b" in words else True


def test_half_precision_models(small):
    adapter, source, target, words = small
    half = FuseAdapter.fit(*(model(m.tokenizer, m.embedding_table.to(torch.bfloat16), m.name) for m in (source, target)), words, max_tokens=3, forms=("text",))
    assert half.tensors[2].dtype == torch.float32 and half.coverage["held_out"]["r2"] == pytest.approx(adapter.coverage["held_out"]["r2"], abs=0.02)
    adapter.check(model(source.tokenizer, source.embedding_table.to(torch.bfloat16), source.name))       # the same model, loaded otherwise


# ---- storage

def same(a, b):
    assert sorted(a.tensors) == sorted(b.tensors) and sorted(a.pairs) == sorted(b.pairs)
    for k in a.tensors: assert torch.equal(a.tensors[k], b.tensors[k])
    for k in a.pairs: assert torch.equal(a.pairs[k], b.pairs[k])


def test_saved_and_read_is_the_same(two_spellings, tmp_path):
    source, target, words = two_spellings
    adapter = FuseAdapter.fit(source, target, words, max_tokens=4, forms=("text",), center=True, ridge={1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
    for k, form in enumerate((adapter, adapter.compress(dtype=torch.float16), adapter.compress(1), adapter.compress(1, torch.bfloat16))):
        folder = form.save_pretrained(tmp_path/str(k))
        assert sorted(p.name for p in folder.iterdir()) == ["adapter.safetensors", "config.json"]
        back = FuseAdapter.from_pretrained(folder, source, target)
        same(form, back)
        assert back.nbytes == form.nbytes and back.source is source and back.coverage == json.loads(json.dumps(form.coverage), object_pairs_hook=lambda p: {int(k) if k.isdigit() else k: v for k, v in p})
        x = torch.randn(2, 3, 5)
        assert torch.equal(back.push(x, (3, 2)), form.push(x, (3, 2)))
    config = json.loads((tmp_path/"0"/"config.json").read_text())
    for key in ("format", "version", "made", "seconds", "source", "target", "words", "ridge", "max_tokens", "classes", "sha256"): assert key in config
    assert config["source"]["name"] == "letters" and config["source"]["d"] == 5 and len(config["target"]["tokenizer"]) == 64 and len(config["words"]["sha256"]) == 64
    adapter.save_pretrained(tmp_path/"0")                   # over an older one


@pytest.mark.parametrize("damage, said", [
    (lambda d: (d/"adapter.safetensors").write_bytes((d/"adapter.safetensors").read_bytes()[:-10]), "cut short or altered"),
    (lambda d: flip(d/"adapter.safetensors"), "cut short or altered"),
    (lambda d: (d/"config.json").write_text((d/"config.json").read_text()[:50]), "not JSON"),
    (lambda d: (d/"config.json").write_text((d/"config.json").read_text().replace('"seed": 0', '"seed": 1')), "altered"),
    (lambda d: (d/"config.json").write_text('{"model_type": "bert"}'), "format"),
    (lambda d: (d/"config.json").write_text("[]"), "format")])
def test_a_damaged_adapter_is_refused(small, tmp_path, damage, said):
    damage(small[0].save_pretrained(tmp_path/"x"))
    with pytest.raises(ValueError, match=said): FuseAdapter.from_pretrained(tmp_path/"x")


def flip(path):
    b = bytearray(path.read_bytes())
    b[-5] ^= 1
    path.write_bytes(b)


def test_an_adapter_that_is_not_there(small, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no config.json"): FuseAdapter.from_pretrained(tmp_path)
    small[0].save_pretrained(tmp_path/"x")
    (tmp_path/"x"/"adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter.safetensors"): FuseAdapter.from_pretrained(tmp_path/"x")
    with pytest.raises(FileNotFoundError, match="nobody/nothing"): FuseAdapter.from_pretrained("nobody/nothing")


def test_from_the_hub(small, tmp_path, monkeypatch):
    "A hub id, served from a hub cache on disk."
    asked = []
    def download(repo, file):
        asked.append((repo, file))
        return str(tmp_path/"snapshot"/file)
    small[0].save_pretrained(tmp_path/"snapshot")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    same(FuseAdapter.from_pretrained("someone/letters--own"), small[0])
    assert asked == [("someone/letters--own", "config.json"), ("someone/letters--own", "adapter.safetensors")]


def test_a_failed_save_leaves_the_old_adapter(small, tmp_path, monkeypatch):
    folder = small[0].save_pretrained(tmp_path/"x")
    def fail(*a, **k): raise OSError("disk full")
    monkeypatch.setattr(chapter, "save_file", fail)
    with pytest.raises(OSError, match="disk full"): small[0].compress(dtype=torch.float16).save_pretrained(folder)
    same(FuseAdapter.from_pretrained(folder), small[0])
    assert len(list(folder.iterdir())) == 2


def test_check_names_what_does_not_match(small):
    adapter, source, target, words = small
    wide = model(source.tokenizer, torch.randn(52, 9), "wide")
    with pytest.raises(ValueError, match="source embedding width.*8.*9"): adapter.check(wide, target)
    with pytest.raises(ValueError, match="source vocabulary size"): adapter.check(model(source.tokenizer, torch.randn(50, 8)), target)
    with pytest.raises(ValueError, match="source model.*'other'"): adapter.check(model(source.tokenizer, torch.randn(52, 8), "other"), target)
    with pytest.raises(ValueError, match="source tokenizer"): adapter.check(model(Letters("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"), source.embedding_table), target)
    with pytest.raises(ValueError, match="(?s)source.*target"): adapter.check(target, source)
    assert adapter.check(model(source.tokenizer, source.embedding_table, "another/path"), target) is adapter     # the same model under another name
    adapter.check(source, target)


def test_fingerprint_is_stable(small):
    assert fingerprint(small[1]) == json.loads(json.dumps(fingerprint(small[1])))


def test_cached(small, tmp_path, monkeypatch, caplog):
    adapter, source, target, words = small
    monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path/"cache"))
    options = dict(words=words, max_tokens=3, forms=("text",))
    first = FuseAdapter.cached(source, target, **options)
    same(first, adapter)
    fit, calls = FuseAdapter.fit.__func__, []
    monkeypatch.setattr(FuseAdapter, "fit", classmethod(lambda cls, *a, **k: calls.append(k) or fit(cls, *a, **k)))
    second = FuseAdapter.cached(source, target, **options)
    same(first, second)
    assert not calls and second.source is source and second.target is target
    for change in (dict(words=words[:-1]), dict(max_tokens=2), dict(seed=1), dict(ridge=0.1)): FuseAdapter.cached(source, target, **(options | change))
    FuseAdapter.cached(model(source.tokenizer, source.embedding_table*1.5, "letters"), target, **options)
    assert len(calls) == 5
    [folder] = [p for p in (tmp_path/"cache"/"adapters").iterdir() if FuseAdapter.from_pretrained(p).config["made"] == first.config["made"] and torch.equal(FuseAdapter.from_pretrained(p).tensors[1], first.tensors[1]) and FuseAdapter.from_pretrained(p).max_tokens == 3 and FuseAdapter.from_pretrained(p).config["words"] == first.config["words"]]
    (folder/"adapter.safetensors").write_bytes(b"cut short")
    with caplog.at_level(logging.WARNING): third = FuseAdapter.cached(source, target, **options)
    same(first, third)
    assert len(calls) == 6 and len(caplog.records) == 1 and "damaged" in caplog.text and "\n" not in caplog.records[0].getMessage()
    same(first, FuseAdapter.cached(source, target, **options))
    assert len(calls) == 6


def test_a_cache_that_cannot_be_written(small, tmp_path, monkeypatch, caplog):
    adapter, source, target, words = small
    (tmp_path/"file").write_text("not a folder")
    monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path/"file"))
    with caplog.at_level(logging.WARNING): got = FuseAdapter.cached(source, target, words=words, max_tokens=3, forms=("text",))
    same(got, adapter)
    assert len(caplog.records) == 1 and "cannot write" in caplog.text


def test_compress(two_spellings):
    source, target, words = two_spellings
    adapter = FuseAdapter.fit(source, target, words, max_tokens=4, forms=("text",))
    s = spell(source, target, words, forms=("text",))
    r2 = [adapter.compress(r).score(s)["r2"] for r in (1, 2)] + [adapter.score(s)["r2"]]
    assert r2[0] < r2[1] < r2[2] + 1e-6 and adapter.compress(1).nbytes < adapter.nbytes
    assert adapter.compress(1, words=s).score(s)["r2"] > r2[0]
    for k, T in adapter.compress(4).tensors.items(): assert_close(T, adapter.tensors[k], atol=1e-5, rtol=1e-4)     # nothing to cut
    left, right = chapter._truncated(adapter.tensors[3], 4)
    assert_close(tprod(left, right), adapter.tensors[3], atol=1e-5, rtol=1e-4)
    best = torch.linalg.svdvals(torch.fft.fft(adapter.tensors[3]).permute(2, 0, 1))[:, 2:].square().sum()/3       # Eckart & Young at each frequency
    assert_close((chapter._whole(*chapter._truncated(adapter.tensors[3], 2)) - adapter.tensors[3]).square().sum(), best, atol=1e-4, rtol=1e-3)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="rank"): adapter.compress(bad)


# ---- the packaged models

needs_models = pytest.mark.skipif(not all(installed(n) for n in ("smollm2-135m", "minilm")), reason="the packaged models are not installed")


@pytest.fixture(scope="module")
def packaged():
    from fuse_nb.models import CausalLM, TextEncoder
    return CausalLM.from_pretrained("smollm2-135m", device="cpu"), TextEncoder.from_pretrained("minilm", device="cpu")


@needs_models
def test_smollm2_and_minilm_both_ways(packaged):
    lm, encoder = packaged
    words, f = word_list(5000)
    for source, target in ((lm, encoder), (encoder, lm)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConditionWarning)
            adapter = FuseAdapter.fit(source, target, words, frequencies=f, max_tokens=2, forms=("text",))
        assert adapter.tensors[2].shape == (source.embedding_table.shape[1], target.embedding_table.shape[1], 2)
        assert adapter.coverage["classes"][1]["held_out"]["r2"] > 0.1
        shuffled = spell(source, target, words[::-1], forms=("text",))
        shuffled.groups = {ab: (w, k, S, T.roll(1, 0)) for ab, (w, k, S, T) in shuffled.groups.items()}       # every word with its neighbour's spelling
        assert adapter.score(shuffled)["r2"] < 0


@needs_models
def test_the_fast_spelling_is_that_of_chapter_02(packaged):
    from fuse_nb.words import word_ids
    words = ["dog", "Photosynthesis", "naïve", "don't", "l'été", "x"] + word_list(500)[0]
    for m in packaged:
        for space in (True, False): assert chapter._word_ids(m.tokenizer, words, space) == word_ids(m.tokenizer, words, space)
        m.tokenizer("a b c", truncation=True, max_length=2, padding="max_length")                             # leaves its mark on the tokenizer
        assert chapter._word_ids(m.tokenizer, words, True) == word_ids(m.tokenizer, words, True)


@needs_models
def test_coverage_agrees_with_chapter_02(packaged):
    lm, encoder = packaged
    words, f = word_list(3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        c = FuseAdapter.fit(lm, lm, words, frequencies=f, max_tokens=3, forms=("text",), ridge=0.1).coverage
    mine = coverage(lm.tokenizer, words, f, max_tokens=3)
    for l in (1, 2, 3): assert c["classes"][l]["share"] == pytest.approx(mine.share[l - 1], abs=1e-6) and c["classes"][l]["share_weighted"] == pytest.approx(mine.weighted[l - 1], abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu(small):
    adapter, source, target, words = small
    there = FuseAdapter.fit(*(model(m.tokenizer, m.embedding_table.cuda(), m.name) for m in (source, target)), words, max_tokens=3, forms=("text",))
    for l in adapter.tensors: assert_close(there.tensors[l].cpu(), adapter.tensors[l], atol=1e-3, rtol=1e-3)
    x = torch.randn(4, 3, 8)
    assert_close(adapter.to("cuda").push(x.cuda()).cpu(), adapter.push(x), atol=1e-4, rtol=1e-4)
