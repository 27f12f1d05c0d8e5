"Tests that were missing: a random change of a sign, a number or a condition in a core room had gone unnoticed by the room's own file. Each compares with the definition."
# ruff: noqa: F811 (fixtures are imported)
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import fuse_nb.search as search_room
from fuse_nb.autodan import AutoDAN, Node, _Walk
from fuse_nb.combined import ridge_fit
from fuse_nb.gradient import bridge
from fuse_nb.gram import ConditionWarning, GramAccumulator
from fuse_nb.guesses import Guesser, joins
from fuse_nb.losses import Fluency, non_ascii
from fuse_nb.normal import self_product
from fuse_nb.objective import Objective, Term, gradient, token_gradient
from fuse_nb.pseudoinverse import tlstsq, tpinv
from fuse_nb.ranking import LM, Fuse, calibrate
from fuse_nb.ridge import ridge_path
from fuse_nb.search import Ledger
from fuse_nb.slots import State, spelled_apart, tangents
from fuse_nb.spectrum import check_tubes, from_spectrum, to_spectrum
from fuse_nb.spelling import check_shares, ids_of_words
from fuse_nb.swaps import GCG, PEZ, RandomSearch, _nearest, _Wander
from fuse_nb.tokens import allowed_tokens, decoded, survivors
from fuse_nb.tproduct import bcirc, fold, teye, tprod, unfold
from fuse_nb.vocabulary import word_ids
from fuse_nb.words import Word, split
from test_search import close, made, own_cache, source_of, state_of  # noqa: F401 (fixtures)
from test_tokens import small


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


# ---------------------------------------------------------------- algebra

@pytest.mark.parametrize("l", (1, 3, 4))
def test_fewer_words_than_dimensions_give_the_fit_of_least_norm(l):
    X, Y = drawn(4, 7, l), drawn(4, 2, l, seed=1)
    sums = GramAccumulator(7, 2, l, dtype=torch.float64).update(X, Y)
    with pytest.warns(ConditionWarning, match="least norm decides"): T = sums.solve()
    close(T, fold(torch.linalg.pinv(bcirc(X)) @ unfold(Y), l), 1e-6)


def test_words_of_zeros_have_an_infinite_condition_number():
    zeros = torch.zeros(5, 2, 3)
    assert GramAccumulator(2, 2, 3).update(zeros, zeros).condition() == float("inf")


@pytest.mark.filterwarnings("ignore::fuse_nb.normal.ConditionWarning")
def test_with_a_ridge_the_faint_directions_count_too():
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([5e-4, 1, 1])[:, None]   # in the Gram matrix 2e-7 beside sums that are good to 1e-7

    def sums(n):
        X = torch.randn(n, 3, 1, generator=g)
        return GramAccumulator(3, 1, 1).update(X * scale, X[:, :1]), X.double()
    (train, x), (held, z), ridges, r2 = sums(40), sums(30), [1e-8, 1e-6, 1e-2], []
    for ridge in ridges:
        A, b, H = (x * scale)[..., 0], x[:, 0], (z * scale)[..., 0]
        T = torch.linalg.solve(A.T @ A + ridge * A.square().sum() / 3 * torch.eye(3), A.T @ b)
        r2.append(1 - ((H @ T - z[:, 0]).square().sum() / (z[:, 0] - z[:, 0].mean()).square().sum()).item())
        close(train.solve(ridge)[..., 0] * scale, T * scale, 1e-3)
    assert r2[0] > 0.9 and r2[2] < 0.1                # the faint direction has all there is to know
    assert ridge_path(train, held, ridges).tolist() == pytest.approx(r2, abs=1e-3)


@pytest.mark.parametrize("unit", (1e-3, 1.0, 1e3))
def test_the_cut_of_a_pseudoinverse_is_relative(unit):
    A = drawn(6, 4, 3)
    s = torch.linalg.svdvals(bcirc(A))
    assert (s < 0.39 * s[0]).any() and not ((s / s[0] - 0.4).abs() < 0.01).any()   # some are cut, none is near the cut
    close(unit * tpinv(unit * A, 0.4), fold(torch.linalg.pinv(bcirc(A), rtol=0.4)[:, :6], 3), 1e-6)


def test_a_middling_condition_asks_for_no_singular_values(monkeypatch):
    A, B = drawn(6, 3, 3), drawn(6, 2, 3, seed=1)
    A[:, 0] *= 0.02
    s, inverse = torch.linalg.svdvals(bcirc(A)), torch.linalg.pinv(bcirc(A))
    assert 1e-6 < (s[-1] / s[0]) ** 2 < 1e-2
    monkeypatch.setattr(torch.linalg, "svdvals", None)
    close(tpinv(A), fold(inverse[:, :6], 3), 1e-8)
    close(tlstsq(A, B), fold(inverse @ unfold(B), 3), 1e-8)


def test_an_identity_of_no_rows(): assert teye(0, 3).shape == (0, 0, 3)


@pytest.mark.parametrize("l", (1, 2, 5))
@pytest.mark.parametrize("dtype", (torch.float32, torch.complex64))
def test_an_empty_tensor_has_as_many_frequencies_as_others(l, dtype):
    full, empty = to_spectrum(torch.ones(2, 3, l, dtype=dtype)), to_spectrum(torch.ones(2, 0, l, dtype=dtype))
    assert empty.dtype == full.dtype and empty.shape == (len(full), 2, 0)


def test_tubes_of_no_length_are_refused():
    with pytest.raises(ValueError, match="tubes of length l >= 1"): to_spectrum(torch.zeros(2, 3, 0))
    assert check_tubes("M", torch.zeros(2, 0), dims=2).shape == (2, 0)     # a matrix has none


# ---------------------------------------------------------------- words and spellings

def test_a_special_word_in_front_covers_no_whitespace_word(made):
    tokenizer = made["pieces"].tokenizer
    ids = tokenizer("the dog")["input_ids"]
    assert split(tokenizer, ids)[0] == Word("", ids[:1], 0, 1, special=True)


def test_shares_may_be_of_any_sum_and_some_of_them_zero(): assert check_shares([0.0, 0.25, 0.5], 3).tolist() == [0.0, 0.25, 0.5]


def test_words_without_shares_have_the_same_and_together_all(): assert check_shares(None, 4).tolist() == [0.25] * 4


def test_words_that_share_a_token_with_what_is_before_them_are_spelled_in_a_row_as_one_by_one():
    vocab = {t: i for i, t in enumerate(["a", " ", "d", "o", "g", "c", "t", "a ", " c"])}
    glue = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, [(" ", "c"), ("a", " ")])))   # "a| c|a|t", but "a |d|o|g"
    words = ["dog", "cat", "go"]
    assert glue("a dog")["input_ids"][0] == vocab["a "] and glue("a cat")["input_ids"][0] == vocab["a"]
    for space in (True, False): assert list(ids_of_words(glue, words, space)) == word_ids(glue, words, space)


@pytest.mark.parametrize("rows", (1, 3))
def test_embeddings_and_rows_of_tokens_are_as_many(made, rows):
    lm = made["gpt2"]
    ids = lm.tokenize(["a dog ran"])
    with pytest.raises(ValueError, match="one sequence of source_ids for each row"):
        bridge(made["gpt2-pieces"], lm.embed(torch.tensor(ids * 2)), ids * rows)


# ---------------------------------------------------------------- guesses

def test_a_third_place_joins_where_its_swap_alone_is_better():
    swaps, losses, known = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1.0, 2.0, 3.0], (0, 0, 0)
    for here, joined in (2.5, [[1, 1, 0]]), (3.5, [[1, 1, 0], [1, 1, 1]]), (0.5, [[1, 1, 0]]):   # two are joined in any case
        assert joins([0, 0, 0], swaps, losses, {known: here}, 3) == joined


def test_a_place_gets_two_thirds_of_the_wanted_swaps_and_no_more():
    changes = torch.stack([torch.arange(8.0), 100 + torch.arange(8.0)])               # all of the first place's guesses are better
    found = Guesser(torch.zeros(20, 2)).ordered([0, 0], torch.arange(1, 17).view(2, 8), changes, wanted=6)
    assert found == [[1, 0], [2, 0], [3, 0], [4, 0], [0, 9], [0, 10], [0, 11], [0, 12]]


def test_twice_the_wanted_swaps_are_listed_and_no_more():
    changes = torch.arange(20.0).view(5, 4).T                                         # the places by turns
    found = Guesser(torch.zeros(30, 2)).ordered([0] * 4, torch.arange(1, 21).view(4, 5), changes, wanted=3)
    assert found == [[1, 0, 0, 0], [0, 6, 0, 0], [0, 0, 11, 0], [0, 0, 0, 16], [2, 0, 0, 0], [0, 7, 0, 0]]


# ---------------------------------------------------------------- states and searches

def test_a_state_by_itself_has_nothing_found_yet(made):
    lm = made["gpt2"]
    left, tokens = lm.tokenize(["a photo of"])[0], [3, 50, 100]
    logprobs = lm.logits(lm.embed(torch.tensor([left])))[0, -1].log_softmax(-1).detach()
    s = State(lm, left, logprobs, torch.ones(len(logprobs), dtype=torch.bool))
    close(s.fluency()[tokens], lm.nll([left + [v] for v in tokens], prefix_len=len(left), mean=True), 1e-4)
    assert s.start == len(left) and s.end == 0


@pytest.mark.parametrize("scope", ("found", "text"))
def test_a_ranker_is_told_what_fluency_is_a_mean_over(made, scope):
    lm, seen, prefix = made["gpt2"], [], "a photo of"

    class Watch(LM):
        def rank_all(self, objective, states):
            seen.extend(states)
            return super().rank_all(objective, states)
    search = AutoDAN(steps=3, beam=2, candidates=4, ranker=Watch(), progress=False)
    search.minimize(Objective(Term(Fluency(lm, scope=scope))), prefix)
    given = len(lm.tokenize([prefix])[0])
    assert len(seen) == 1 + 2 + 2
    for s in seen:
        wanted = lm.nll([s.left + [v] for v in (3, 50)], prefix_len=given if scope == "found" else 1, mean=True)
        close(s.fluency()[[3, 50]], wanted, 1e-4)
        assert s.start == given


def test_the_end_token_needs_a_second_step():
    assert AutoDAN(steps=2, end=".").steps == 2
    with pytest.raises(ValueError, match="at least 2"): AutoDAN(steps=1, end=".")


def test_64_texts_for_each_of_the_beam_are_kept_to_go_back_to(made):
    search = AutoDAN(steps=3, beam=1, candidates=40, ranker="lm", strategy="uniform-cost", progress=False)
    r = search.minimize(Objective(Term(made["gpt2"])), "a photo of")
    totals = [n["total"] for n in r.trace[-1]["open"]]
    assert r.evaluations - len(r.trace) > 64 == len(totals) and totals == sorted(totals)


def test_tokens_whose_vectors_are_zero_have_losses_and_slopes(own_cache):
    lm = source_of("gpt2")
    row = lm.tokenize(["a photo of a cat"])[0]
    with torch.no_grad(): lm.embedding_table[row] = 0
    objective = Objective(Term(lm))
    for found in (gradient, token_gradient):
        losses, slopes = found(objective, [row], start=3)
        close(losses, objective([row], start=3).total, 1e-4)
        assert slopes.isfinite().all() and slopes.any()


def test_time_is_counted_from_the_beginning_of_a_search(made, monkeypatch):
    clock = iter([100.0, 104.9, 105.0])
    monkeypatch.setattr(search_room, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    books = Ledger(RandomSearch(steps=2, max_seconds=5), Objective(Term(made["gpt2"])), "a photo of")
    assert [books.late(), books.late()] == [False, True]


def test_a_start_that_glues_to_the_prefix_is_spelled_by_itself(made):
    lm = made["gpt2"]
    books = Ledger(RandomSearch(), Objective(Term(lm)), "a ph")
    start = search_room._given_start(books, "oto of a cat")
    assert decoded(lm, [start]) == ["oto of a cat"]
    assert lm.tokenize(["a photo of a cat"])[0] != books.left + start     # it does glue


def test_a_search_that_found_nothing_says_why(made):
    lm = made["gpt2"]
    whole, broken = lm.tokenize(["the dog"])[0], [lm.tokenize([c])[0][-1] for c in "the"]
    assert survivors(lm, [whole]) and not survivors(lm, [broken])

    def told(left, stopped, dropped, evaluations):
        books = Ledger(RandomSearch(), Objective(Term(lm)), "the dog")
        books.left, books.stopped, books.dropped, books.evaluations = left, stopped, dropped, evaluations
        with pytest.raises(ValueError, match="nothing was found in 0 steps") as e: books.result()
        said = ("the prefix itself does not survive", "every text that was tried")
        return [i for i, part in enumerate(said) if part in str(e.value)]
    assert told(broken, "no candidates survive", 3, 0) == [0]
    assert told(whole, "no candidates survive", 3, 0) == told(broken, "steps", 3, 0) == [1]
    assert told(whole, "steps", 3, 2) == told(whole, "steps", 0, 0) == told(broken, "evaluations", 0, 2) == []


@pytest.mark.parametrize("room", range(10))
def test_as_many_texts_are_ranked_as_the_budget_has_room_for(room):
    ranker = SimpleNamespace(tries=lambda terms, states: 2)
    walk = SimpleNamespace(ranker=ranker, terms=[], books=SimpleNamespace(room=lambda: room))
    by, texts, tries = _Walk.within_budget(walk, list("abcd"))
    if room < 2: assert isinstance(by, LM) and (texts, tries) == (["a"], 0)
    else: assert by is ranker and (texts, tries) == (list("abcd")[: room // 2], 2)


@pytest.mark.parametrize("alive, room, why", [(0, 5, "no candidates survive"), (0, 0, "evaluations"), (2, 0, "evaluations"), (2, 1, None)])
def test_a_step_without_texts_says_what_it_lacks(alive, room, why):
    said = []
    books = SimpleNamespace(surviving=lambda rows: range(alive), room=lambda: room, right=[], lost=0, stop=said.append)
    kept = _Walk.kept(SimpleNamespace(books=books), [Node([1], 0.0, 1), Node([2], 0.0, 1)])
    assert said == ([why] if why else []) and len(kept) == min(alive, room)


def test_a_vector_is_projected_to_the_token_of_its_direction_however_long_others_are(own_cache):
    lm = source_of("gpt2")
    objective, prefix, now = Objective(Term(lm)), "a photo of", lm.tokenizer(" a dog ran")["input_ids"]
    with torch.no_grad(): lm.embedding_table[now] *= 0.1
    assert PEZ(steps=1, progress=False).minimize(objective, prefix, init=" a dog ran").trace[0]["frontier"] == now
    search = RandomSearch(ball="l2", radius=1)       # moved by a tenth of its length
    walk = _Wander(search, Ledger(search, objective, prefix), allowed_tokens(lm), now)
    assert walk.neighbour(torch.Generator().manual_seed(0)) == now


def test_a_continued_search_has_the_budget_that_is_left(made):
    search = RandomSearch(steps=1, candidates=4, length=3, max_evaluations=9, progress=False)
    objective = Objective(Term(made["gpt2"]))
    r = search.minimize(objective, "a photo of")
    assert "lost" not in r.trace[-1] and Ledger(search, objective, "a photo of", resume=r).room() == 9 - r.evaluations > 0
    r.trace[-1]["lost"] = 2
    assert Ledger(search, objective, "a photo of", resume=r).room() == 9 - r.evaluations - 2


@pytest.mark.parametrize("begun", (True, False))
def test_a_start_is_spelled_in_its_place_behind_a_begin_token_or_without(begun):
    letters = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    k = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [("Ċ", "Ċ")]))
    k.pre_tokenizer, k.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    k.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    lm = small(PreTrainedTokenizerFast(tokenizer_object=k, bos_token="<s>"), "begins")
    books = Ledger(RandomSearch(), Objective(Term(lm)), "a", "b")
    whole = lm.tokenize(["a\n\nb"])[0]                  # the second line break stands with the b
    assert books.left == [0, *lm.tokenizer("a", add_special_tokens=False)["input_ids"]]
    if not begun: books.left, books.start = books.left[1:], 1        # as a chat template may give it
    assert search_room._given_start(books, "\n\n") == whole[2:-1] == 2 * lm.tokenizer("\n", add_special_tokens=False)["input_ids"]


def test_the_nearest_token_is_that_of_the_smallest_angle():
    x, table = drawn(5, 8) * torch.tensor([0.01, 1, 5, 20, 100])[:, None], drawn(40, 8, seed=1)
    unit = table / table.norm(dim=1, keepdim=True)
    assert torch.equal(_nearest(x, unit), torch.cosine_similarity(x[:, None], table[None], dim=-1).argmax(1))


@pytest.mark.parametrize("seconds, read", [(None, 70), (3600, 70), (1e-9, 32)])
def test_a_limit_of_time_stops_between_batches(made, seconds, read):
    lm = made["gpt2"]
    books = Ledger(RandomSearch(max_seconds=seconds), Objective(Term(lm)), "a photo of")
    rows = [books.left + [10 + i] for i in range(70)]
    close(books.in_time(rows).total, books.objective(rows[:read], books.start).total, 1e-4)
    assert books.evaluations == read
