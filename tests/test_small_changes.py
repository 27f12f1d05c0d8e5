"Tests that were missing: a random change of a sign, a number or a condition in a core room had gone unnoticed by the room's own file. Each compares with the definition."
# ruff: noqa: F811 (fixtures are imported)
import numpy as np
import pytest
import torch

from fuse_nb.autodan import AutoDAN
from fuse_nb.combined import ridge_fit
from fuse_nb.gram import GramAccumulator
from fuse_nb.losses import Fluency, non_ascii
from fuse_nb.normal import self_product
from fuse_nb.objective import Objective, Term, gradient
from fuse_nb.pseudoinverse import tlstsq
from fuse_nb.ranking import Fuse, calibrate
from fuse_nb.slots import spelled_apart, tangents
from fuse_nb.spectrum import from_spectrum
from fuse_nb.swaps import GCG
from fuse_nb.tproduct import bcirc, fold, tprod, unfold
from test_search import close, made, own_cache, state_of  # noqa: F401 (fixtures)


def drawn(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("real, dtype", [(True, torch.float32), (False, torch.complex64)])
def test_an_empty_tensor_comes_back_as_what_it_was(real, dtype):
    back = from_spectrum(torch.zeros(2 if real else 3, 0, 4, dtype=torch.complex64), 3, real)
    assert back.shape == (0, 4, 3) and back.dtype == dtype


@pytest.mark.parametrize("p", (256, 257, 300, 1023))
def test_a_product_in_blocks_is_the_product(p):
    S = drawn(2, 5, p)
    close(self_product(S), S.mT @ S)


@pytest.mark.parametrize("l", (1, 3, 4))
def test_least_squares_where_columns_repeat(l):
    A, B = drawn(9, 3, l), drawn(9, 2, l, seed=1)
    A = torch.cat([A, A[:, :1]], 1)
    close(tlstsq(A, B), fold(torch.linalg.pinv(bcirc(A)) @ unfold(B), l), 1e-6)


def test_explained_variance_is_what_is_left_over():
    X, Y, T, b = drawn(50, 4, 3), drawn(50, 2, 3, seed=1), drawn(4, 2, 3, seed=2), drawn(2, 3, seed=3)
    sums = GramAccumulator(4, 2, 3, dtype=torch.float64)
    sums.update(X, Y)
    for bias in (None, b):
        error = (tprod(X, T) + (0 if bias is None else bias) - Y).square().sum()
        assert sums.r2(T, bias) == pytest.approx((1 - error / (Y - Y.mean(0)).square().sum()).item(), rel=1e-6)


def test_predictions_of_any_size_are_calibrated():
    raw, tokens, losses = torch.randn(50), torch.arange(0, 40, 4), torch.randn(10)
    losses = losses + 2 * raw[tokens]
    for unit in (1e-3, 1.0, 1e3):
        close(calibrate(unit * raw, tokens, losses), calibrate(raw, tokens, losses), 1e-3)
    slope, level = np.polyfit(raw[tokens].double(), losses.double(), 1)
    close(calibrate(0.01 * raw, tokens, losses), (slope * raw + level).float(), 1e-3)


def test_three_words_are_enough_to_calibrate(made):
    lm, term = made["gpt2"], Term(made["pieces"].text("the dog ran"), adapter=made["gpt2-pieces"])
    s = state_of(lm, "a photo of")
    (found,) = tangents(term, [s], [s.expansions(3)])
    raw = lm.embedding_table.detach() @ found.source.mean(0)
    close(Fuse(3).predict(term, s), calibrate(raw, found.tokens, found.losses), 1e-4)
    two, = tangents(term, [s], [s.expansions(2)])
    raw = lm.embedding_table.detach() @ two.source.mean(0)
    close(Fuse(2).predict(term, s), raw - raw[two.tokens].mean() + two.losses.mean(), 1e-4)


@pytest.mark.parametrize("sign, likelier", [(1, 0.99), (-1, 0.01)])
def test_the_regression_knows_no_unit(sign, likelier):
    "Neither what it predicts nor which correlation of the slots it finds likelier."
    g = torch.Generator().manual_seed(1)
    X, w = torch.randn(60, 20, generator=g), torch.randn(1, 20, generator=g)
    tokens = [torch.arange(30), torch.arange(30, 60)]
    losses = [X[tokens[0]] @ w[0], sign * X[tokens[1]] @ w[0]]   # worth the same in both slots, or the opposite
    fit = lambda unit, shares: ridge_fit([X, X], tokens, [unit * y for y in losses], 0.1, share=[torch.full((2, 2), r) for r in shares]) / unit
    for unit in (1e-4, 1.0, 1e4):
        close(fit(unit, [0.01, 0.99]), fit(1.0, [likelier]), 1e-3)
    assert not torch.allclose(fit(1.0, [0.01]), fit(1.0, [0.99]), atol=1e-2)


def test_a_text_is_judged_from_its_second_token(made):
    lm, loss = made["gpt2"], Fluency(made["gpt2"])
    rows = [lm.tokenize(["a photo of a cat"])[0]]
    logprobs = lm.logits(lm.embed(torch.tensor(rows)))[0].log_softmax(-1)
    wanted = -logprobs[:-1].gather(1, torch.tensor(rows[0][1:])[:, None]).mean()
    close(loss.exact_ids(rows), wanted[None].detach(), 1e-4)
    close(loss.embed_losses(lm.embed(torch.tensor(rows))).detach(), wanted[None].detach(), 1e-4)


def test_shares_of_characters(): assert non_ascii().exact(["é", "éa", "", "a"]).tolist() == [1, 0.5, 0, 0]


@pytest.mark.parametrize("end", (0, 2))
def test_a_model_that_reads_the_found_tokens_gives_them_alone_a_gradient(made, end):
    lm, encoder = made["gpt2"], made["pieces"]
    term = lambda reads: Term(encoder.text("the dog ran"), adapter=made["gpt2-pieces"], reads=reads)
    row = lm.tokenize(["a photo of the dog ran over"])[0]
    stop = len(row) - end
    losses, grad = gradient(Objective(term("found"), source=lm), [row], start=3, end=end)
    alone, own = gradient(Objective(term("whole"), source=lm), [row[3:stop]], start=0)
    close(losses, alone)
    close(grad[:, 3:stop], own)
    assert not grad[:, :3].any() and not grad[:, stop:].any() and own.any()


def test_free_tokens_are_cut_where_the_model_ends(made):
    target = made["pieces"]
    term = Term(target.text("the dog ran"), adapter=made["gpt2-pieces"], prefix="the ", suffix=" ran")
    s = state_of(made["gpt2"], "a photo of " + "dog " * 40, chosen=35, right=" cat")
    ids, free = spelled_apart(term, s, [])
    assert len(ids) == target.max_length and free.stop - free.start > 10
    assert ids[free.stop:] == spelled_apart(term, state_of(made["gpt2"], "a photo of dog", chosen=1, right=" cat"), [])[0][-len(ids[free.stop:]):]


def test_a_search_grows_up_to_the_suffix_and_no_further(made):
    lm = made["gpt2"]
    search = AutoDAN(steps=lm.max_length, beam=1, candidates=4, ranker="lm", progress=False)
    r = search.minimize(Objective(Term(lm)), " ".join(["dog"] * (lm.max_length // 4)), suffix=" cat ran")
    assert r.stopped == "no candidates left", r.stopped
    assert len(r.trace[-1]["frontier"][0]["ids"]) + len(lm.tokenizer(" cat ran")["input_ids"]) >= lm.max_length - 1


@pytest.mark.parametrize("guessed, joined, learns", [(0.5, 1, True), (0, 2, True), (0, 1, False)])
def test_gcg_remembers_texts_where_it_guesses_or_joins(made, guessed, joined, learns):
    lm = made["gpt2"]
    search = GCG(steps=2, length=4, candidates=8, topk=8, guessed=guessed, joined=joined, progress=False)
    r = search.minimize(Objective(Term(lm), Term(made["pieces"].text("the dog ran"), adapter=made["gpt2-pieces"])), "a photo of")
    assert bool(r.trace[-1].get("known")) == learns
