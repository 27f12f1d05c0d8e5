"The objective: what each term reads, what its gradient is, what is told apart and what is refused; on tiny models of random weights."
# ruff: noqa: F811 (fixtures)
import warnings

import pytest
import torch
import torch.nn.functional as F

from fuse_nb.causal import CausalLM
from fuse_nb.losses import Fluency, NextTokens, Penalty, TargetText, ZeroShotLabel, length
from fuse_nb.objective import Objective, Term, gradient, token_gradient
from fuse_nb.search import evaluate
from fuse_nb.swaps import GCG
from test_models import SIZES, V, byte_bpe
from test_search import adapter_of, bert, close, full_logits, made, own_cache, source_of  # noqa: F401 (fixtures)

transformers = pytest.importorskip("transformers")


class Heard:
    "A loss of text that keeps what it is asked, and answers with its length."
    label = "heard"
    def __init__(self): self.texts = []
    def exact(self, texts): self.texts += texts; return torch.tensor([float(len(t)) for t in texts])


class Tokens:
    "A loss of the source's tokens that keeps what it is asked."
    label = "tokens"
    def __init__(self, lm): self.model = self.lm = lm; self.rows = []
    def exact_ids(self, seqs, start=1): self.rows += [(list(s), start) for s in seqs]; return torch.tensor([float(len(s)) for s in seqs])


def rows_of(lm, prefix, found, suffix):
    ids = lambda t: lm.tokenizer(t, add_special_tokens=False)["input_ids"] if t else []
    left, right = lm.bos_ids + ids(prefix), ids(suffix)
    return [left + ids(f) + right for f in found], len(left), len(right)


# --- what a term reads -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_term_reads_the_whole_or_what_was_found(made, family):
    lm, whole, found = made[family], Heard(), Heard()
    seqs, start, end = rows_of(lm, "a photo of", [" a cat", " two people"], " on a mat")
    terms = Term(whole, name="whole"), Term(found, name="found", reads="found", prefix="two: ", suffix=" ride")
    values = Objective(*terms, source=lm)(seqs, start, end=end)
    assert whole.texts == ["a photo of a cat on a mat", "a photo of two people on a mat"]
    assert found.texts == ["two:  a cat ride", "two:  two people ride"]
    assert values.terms["found"].tolist() == [len(t) for t in found.texts]
    assert terms[0].read_tokens(seqs[0], start, end) == seqs[0]
    assert terms[1].read_tokens(seqs[0], start, end) == lm.tokenizer(" a cat", add_special_tokens=False)["input_ids"]
    assert terms[1].read_tokens(torch.tensor(seqs[0]), start) == seqs[0][start:]
    with pytest.raises(ValueError, match="reads must be one of whole, found"): Term(found, reads="prefix")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_term_of_tokens_reads_what_was_found(made, family):
    lm = made[family]
    seqs, start, end = rows_of(lm, "a photo of", [" a cat"], " on a mat")
    found, told = seqs[0][start:-end], Tokens(lm)
    Objective(Term(told, reads="found"), source=lm)(seqs, start, end=end)
    assert told.rows == [(lm.bos_ids + found, max(len(lm.bos_ids), 1))]
    text = TargetText(lm, " ran after")
    got = Objective(Term(text, reads="found"), source=lm)(seqs, start, end=end).total
    close(got, text.exact_ids([lm.bos_ids + found]))


@pytest.fixture(scope="module")
def chat(made):
    "A source with special tokens for a chat."
    tokenizer = byte_bpe()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>", "<|assistant|>"]})
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64))
    return CausalLM("chat", model, tokenizer, "cpu")


TEMPLATE = "<|user|>\na photo of", "<|end|>\n<|assistant|>\n"


def test_texts_are_decoded_as_given(chat):
    seqs, start, end = rows_of(chat, TEMPLATE[0], [" a cat"], TEMPLATE[1])
    whole, found = Heard(), Heard()
    objective = Objective(Term(whole, name="whole"), Term(found, name="found", reads="found"), source=chat)
    assert objective.texts(seqs) == ["<|user|>\na photo of a cat<|end|>\n<|assistant|>\n"]
    objective(seqs, start, end=end)
    assert whole.texts == objective.texts(seqs) and found.texts == [" a cat"]


def test_the_gradient_reads_a_template_as_the_exact_loss_does(made, chat):
    "Special tokens are no words: the bridge would leave them out of what the target reads."
    seqs, start, end = rows_of(chat, TEMPLATE[0], [" a cat", " two dogs"], TEMPLATE[1])
    adapter = adapter_of(chat, made["pieces"], {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
    for reads in ("whole", "found"):
        objective = Objective(Term(made["pieces"].text("the dog ran"), 3.0, adapter, reads=reads), source=chat)
        for row in seqs:
            losses, grad = gradient(objective, [row], start, end)
            close(losses, objective([row], start, end=end).total, 1e-4)
            assert (grad[0, start:-end].norm(dim=-1) > 0).all()
            assert reads == "whole" or (grad[0, :start] == 0).all() and (grad[0, -end:] == 0).all()


def test_several_prefixes_are_averaged(made):
    lm, loss, requests = made["gpt2"], TargetText(made["gpt2"], " ran after"), ["two: ", "the ball", "a photo of"]
    seqs = lm.tokenize([" a cat", " two people ride"])
    objective = Objective(Term(loss, prefix=requests, suffix=" on"), source=lm)
    apart = [loss.exact([r + t + " on" for t in objective.texts(seqs)]) for r in requests]
    close(objective(seqs).total, torch.stack(apart).mean(0), 1e-4)
    grads = [gradient(Objective(Term(loss, prefix=r, suffix=" on"), source=lm), [seqs[0]]) for r in requests]
    losses, grad = gradient(objective, [seqs[0]])
    close(losses, torch.stack([g[0] for g in grads]).mean(0), 1e-4)
    close(grad, torch.stack([g[1] for g in grads]).mean(0), 1e-4)
    with pytest.raises(ValueError, match="at least one text"): Term(loss, prefix=[])
    with pytest.raises(ValueError, match="no prefix and no suffix"): Term(lm, prefix="two: ")


def test_fluency_over_the_text_counts_the_prefix_in(made):
    lm = made["gpt2"]
    seqs = lm.tokenize(["a photo of a cat", "two people ride horses"])
    logp = [-full_logits(lm, s).log_softmax(-1)[range(len(s) - 1), s[1:]] for s in seqs]
    for scope, first in (("found", 3), ("text", 1)):
        want = torch.stack([each[first - 1:].mean() for each in logp])
        close(Objective(Term(Fluency(lm, scope=scope)))(seqs, start=3).total, want, 1e-4)
        close(torch.cat([Fluency(lm, scope).embed_losses(lm.embed([s]), 3) for s in seqs]), want, 1e-4)
    with pytest.raises(ValueError, match="scope must be one of found, text"): Fluency(lm, scope="all")


# --- what is told apart --------------------------------------------------------------------------------------------------------------------

def test_what_a_term_compares_with_is_part_of_its_identity(made):
    lm, pieces = made["gpt2"], made["pieces"]
    def other(): return adapter_of(lm, pieces, {l: T + 1e-3 for l, T in made["gpt2-pieces"].tensors.items()})
    def similar(text):
        loss = pieces.text(text)
        loss.label = "image"  # as every picture is called
        return loss
    variants = [
        lambda: Term(similar("the dog ran"), 2.0), lambda: Term(similar("a cat"), 2.0), lambda: Term(similar("a cat"), 2.5),
        lambda: Term(similar("a cat"), 2.0, prefix="two: "), lambda: Term(similar("a cat"), 2.0, reads="found"),
        lambda: Term(similar("a cat"), 2.0, made["gpt2-pieces"]), lambda: Term(similar("a cat"), 2.0, other()),
        lambda: Term(Fluency(lm)), lambda: Term(Fluency(lm, "text")), lambda: Term(TargetText(lm, " ran"), name="t"), lambda: Term(TargetText(lm, " ride"), name="t"),
        lambda: Term(NextTokens(lm, "the dog ran after the ball, one"), name="n"), lambda: Term(NextTokens(lm, "the dog ran after the ball, two"), name="n"),
        lambda: Term(ZeroShotLabel(lm, "positive"), name="z"), lambda: Term(ZeroShotLabel(lm, "negative"), name="z"),
        lambda: Term(ZeroShotLabel(lm, "positive", neutral="a mat"), name="z"), lambda: Term(length(3)), lambda: Term(length(4)),
    ]
    said = [Objective(v(), source=lm).identity() for v in variants]
    assert said == [Objective(v(), source=lm).identity() for v in variants]  # made again, the same
    assert len(set(map(tuple, said))) == len(said) and all(len(s) == 1 for s in said)
    assert said[0][0].startswith("2.0 x image (pieces) ")
    assert Objective(Term(Heard()), source=lm).identity() == Objective(Term(Heard()), source=lm).identity()


# --- the gradient of a source-model term -----------------------------------------------------------------------------------------------------

def by_hand(lm, loss, full, where):
    "The loss of a text and the gradient at the places where the row's tokens stand in it."
    ids = lm.tokenize([full])[0]
    leaf = lm.embed([ids]).clone().requires_grad_()
    value = loss.losses(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0][0, where]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("reads", ["whole", "found"])
def test_a_term_about_the_source_itself_adds_its_exact_gradient(made, family, reads):
    lm = made[family]
    seqs, start, end = rows_of(lm, "a photo of", [" a cat"], " on a mat")
    row, lead = seqs[0], len(lm.bos_ids)
    ids = lambda t: lm.tokenizer(t, add_special_tokens=False)["input_ids"]
    for loss in (NextTokens(lm, "the dog ran after the ball"), ZeroShotLabel(lm, "good", ("good", "bad"), prefix="two:", suffix="\nthe dog:")):
        objective = Objective(Term(lm, 0.0), Term(loss, 2.0, reads=reads), source=lm)
        (losses, grad) = gradient(objective, [row], start, end)
        read = row[lead:] if reads == "whole" else row[start:-end]
        full = objective.terms[1].prefix + lm.tokenizer.decode(read) + objective.terms[1].suffix
        at = lead + len(ids(objective.terms[1].prefix)) if objective.terms[1].prefix else lead
        assert lm.tokenize([full])[0][at:at + len(read)] == read  # this seam leaves the tokens as they are
        value, want = by_hand(lm, loss, full, slice(at, at + len(read)))
        close(losses, 2*value, 1e-4)
        close(losses, objective([row], start, end=end).total, 1e-4)
        first = lead if reads == "whole" else start
        close(grad[0, first:first + len(read)], 2*want, 1e-4)
        assert want.norm() > 1e-4 and (grad[0, :first] == 0).all() and (grad[0, first + len(read):] == 0).all()


def test_a_token_that_the_template_spells_otherwise(made):
    "The first word loses its space behind a prefix that ends with one: its gradient is that of the token that is read."
    lm, row = made["gpt2"], made["gpt2"].tokenize(["a cat ran"])[0]
    loss = ZeroShotLabel(lm, "good", ("good", "bad"), prefix="two: ", suffix=", cat:")
    full = lm.tokenize(["two: a cat ran, cat:"])[0]
    at = next(i for i in range(len(full)) if full[i:i + 2] == row[1:])
    assert full[at - 1] != row[0]
    losses, grad = gradient(Objective(Term(loss), source=lm), [row])
    value, want = by_hand(lm, loss, "two: a cat ran, cat:", slice(at - 1, at - 1 + len(row)))
    close(losses, value), close(grad[0], want)


def test_the_papers_third_model(made):
    "A caption with a sentiment: fluency, a picture (here a sentence) through the adapter, and the source asked for a label, without adapter."
    lm = made["gpt2"]
    terms = lambda: (Term(lm, 0.1), Term(made["pieces"].text("the dog ran"), 5.0, made["gpt2-pieces"]), Term(ZeroShotLabel(lm, "good", ("good", "bad")), 4.0, name="sentiment"))
    seqs = lm.tokenize(["a photo of a cat"])
    whole = gradient(Objective(*terms()), seqs, 3)[1]
    without = gradient(Objective(*terms()[:2]), seqs, 3)[1]
    alone = gradient(Objective(terms()[2], source=lm), seqs, 3)[1]
    close(whole, without + alone, 1e-4)
    assert alone.norm() > 0
    r = GCG(steps=2, length=3, candidates=16, progress=False).minimize(Objective(*terms()), "a photo of")
    assert set(r.terms) == {"fluency", "similar" if "similar" in r.terms else made["pieces"].text("the dog ran").label, "sentiment"}
    assert Objective(*terms()).gradients() == {"fluency": "exact", terms()[1].name: "through its adapter", "sentiment": "exact, in its template"}


def test_a_forgotten_adapter_is_named(made):
    lm, term = made["gpt2"], Term(made["pieces"].text("the dog ran"), 20.0, name="picture")
    objective = Objective(Term(lm), term, Term(length(4)))
    with pytest.warns(UserWarning, match="'picture' adds nothing to the gradient.*adapter=FuseAdapter"): GCG(steps=1, length=2, candidates=4, progress=False).minimize(objective, "a photo of")
    assert "adapter" in objective.gradients()["picture"] and "no losses" in objective.gradients()["length"]
    with pytest.raises(ValueError, match="no term of the objective has a gradient.*'picture'.*adapter"): gradient(Objective(term, source=lm), [[5, 6, 7]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient(Objective(Term(lm), Term(length(4))), [[5, 6, 7]])                                     # a penalty has none to give: nothing was forgotten
        gradient(Objective(Term(lm), Term(made["pieces"].text("the dog"), 0.0)), [[5, 6, 7]])


# --- the gradient over the vocabulary ----------------------------------------------------------------------------------------------------------

def one_hot_slopes(lm, row, first, weight=1.0):
    "The derivative of fluency in one-hot rows, in both of their roles, by autograd."
    X = F.one_hot(torch.tensor(row), len(lm.embedding_table)).float().requires_grad_()
    logp = lm.logits((X @ lm.embedding_table)[None])[0].log_softmax(-1)
    loss = -weight*(X[first:]*logp[first - 1:-1]).sum(-1).mean()
    return loss.detach(), torch.autograd.grad(loss, X)[0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma"])
@pytest.mark.parametrize("scope", ["found", "text"])
def test_slopes_of_fluency_with_and_without_tied_tables(made, family, scope):
    lm = made[family]
    (row,), start, end = rows_of(lm, "a photo of", [" a cat ran"], " on a mat")
    losses, slopes = token_gradient(Objective(Term(Fluency(lm, scope), 1.5)), [row], start, end)
    value, want = one_hot_slopes(lm, row, start if scope == "found" else 1, 1.5)
    close(losses[0], value, 1e-4)
    assert slopes.shape == (1, len(row) - start - end, V) and slopes.dtype == torch.float32
    close(slopes[0], want[start:-end], 1e-4)
    if lm.model.config.tie_word_embeddings:  # then it is the gradient at the embeddings, up to a constant a place
        grad = gradient(Objective(Term(Fluency(lm, scope), 1.5)), [row], start, end)[1]
        apart = slopes[0] - grad[0, start:-end] @ lm.embedding_table.T
        close(apart - apart[:, :1], torch.zeros_like(apart), 1e-3)


def test_slopes_of_other_terms_are_their_gradient_times_the_table(made):
    lm = made["gpt2"]
    (row,), start, end = rows_of(lm, "a photo of", [" a cat ran"], " on")
    objective = Objective(Term(made["pieces"].text("the dog"), 3.0, made["gpt2-pieces"]), Term(TargetText(lm, " ran")), source=lm)
    losses, slopes = token_gradient(objective, [row], start, end)
    total, grad = gradient(objective, [row], start, end)
    close(losses, total), close(slopes[0], grad[0, start:-end] @ lm.embedding_table.T, 1e-4)


def test_fluency_found_alone_has_slopes_too(made):
    for family in ("gpt2", "llama"):
        lm = made[family]
        (row,), start, end = rows_of(lm, "a photo of", [" a cat ran"], " on")
        found, lead = row[start:-end], lm.bos_ids
        _, slopes = token_gradient(Objective(Term(Fluency(lm), reads="found")), [row], start, end)
        want = one_hot_slopes(lm, lead + found, max(len(lead), 1))[1]
        close(slopes[0], want[len(lead):], 1e-4)


def test_a_model_of_which_the_logits_are_bent(made):
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, final_logit_softcapping=5.0))
    with torch.no_grad(): model.get_input_embeddings().weight.normal_(0, 0.6)
    lm = CausalLM("gemma2", model, byte_bpe(), "cpu")
    row = lm.tokenize(["a photo of a cat"])[0]
    losses, slopes = token_gradient(Objective(Term(lm)), [row], 2)
    value, want = one_hot_slopes(lm, row, 2)
    close(losses[0], value, 1e-4), close(slopes[0], want[2:], 1e-4)


# --- several language models ---------------------------------------------------------------------------------------------------------------------

def test_target_text_of_a_second_language_model_reads_text(made):
    lm, second = made["gpt2"], made["llama"]
    loss = TargetText(second, " ran after the ball")
    adapter = adapter_of(lm, second, {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
    for terms in ((Term(loss, 2.0, adapter),), (Term(loss, 2.0, adapter), Term(lm, 0.0))):
        objective = Objective(*terms)
        assert objective.source is lm
        seqs = lm.tokenize(["a cat on a mat", "two people ride"])
        texts = objective.texts(seqs)
        want = [F.cross_entropy(full_logits(second, s + loss.ids)[len(s) - 1:-1], torch.tensor(loss.ids)).item() for s in second.tokenize(texts)]
        close(objective(seqs).total, 2*torch.tensor(want), 1e-4)
        value, grad = gradient(objective, [seqs[0]])
        close(value, 2*torch.tensor(want[:1]), 1e-4)
        assert grad.norm() > 0
    r = GCG(steps=2, length=3, candidates=16, progress=False).minimize(Objective(Term(loss, adapter=adapter)), "a photo of")
    assert r.loss == pytest.approx(loss.exact([r.text]).item(), abs=1e-4)
    with pytest.raises(ValueError, match="'fluency' reads source tokens, but its model llama is not the source gpt2"): Objective(Term(lm, name="own"), Term(second), source=lm)


# --- what a loss returns ---------------------------------------------------------------------------------------------------------------------------

class Says:
    "A loss that answers what it is told to."
    label = "says"
    def __init__(self, model, answer): self.model, self.answer = model, answer
    def exact(self, texts): return self.answer(torch.zeros(len(texts)))
    def exact_ids(self, seqs, start=1): return self.answer(torch.zeros(len(seqs)))
    def losses(self, embeds, mask=None): return self.answer(0*embeds.sum((1, 2)))


@pytest.mark.parametrize("answer, error", [
    (lambda x: torch.cat([x, x[:1]]), "shape"), (lambda x: x[1:], "shape"), (lambda x: x[:, None], "shape"), (lambda x: x.mean(), "shape"),
    (lambda x: x.tolist(), "torch.Tensor"), (lambda x: None, "torch.Tensor"), (lambda x: x*1j, "real")])
def test_what_a_loss_returns_is_checked_where_it_comes_in(made, answer, error):
    lm, seqs = made["gpt2"], made["gpt2"].tokenize(["a cat", "two people"])
    of_text = Term(Says(made["pieces"], answer), adapter=made["gpt2-pieces"])
    of_tokens = Term(Says(lm, answer))
    for term in (of_text, of_tokens):
        for call in (lambda t: Objective(t, source=lm)(seqs), lambda t: gradient(Objective(t, source=lm), [[5, 6, 7], [5, 6, 8]])):
            with pytest.raises((TypeError, ValueError), match=f"term 'says'.*{error}"): call(term)
    with pytest.raises(ValueError, match="term 'fluency'.*shape"): Objective(Term(lm))(seqs, 1, {"fluency": torch.zeros(3)})


def test_counts_are_losses_too(made):
    values = Objective(Term(Says(None, lambda x: x.long() + 3)), source=made["gpt2"])([[5, 6], [7]])
    assert values.total.tolist() == [3.0, 3.0] and values.total.dtype == torch.float32


def test_a_weight_of_zero_silences_a_term(made):
    lm, huge = made["gpt2"], Says(made["pieces"], lambda x: x + float("inf"))
    seqs = lm.tokenize(["a photo of a cat"])
    objective = Objective(Term(lm), Term(huge, 0.0, made["gpt2-pieces"]))
    assert objective(seqs).total.isfinite().all() and objective(seqs).terms["says"].isinf().all()
    losses, grad = gradient(objective, seqs)
    assert losses.isfinite().all() and grad.isfinite().all() and grad.norm() > 0
    zero = gradient(Objective(Term(lm, 0.0)), seqs)
    assert zero[0].tolist() == [0.0] and (zero[1] == 0).all()
    with pytest.raises(FloatingPointError, match="says, less"): Objective(Term(huge), Term(huge, -1.0, name="less"), source=lm)(seqs)


def test_the_memory_of_a_term_is_bounded():
    calls = []
    term = Term(Penalty("counted", lambda t: calls.append(t) or float(len(t))))
    texts = [f"{i}" for i in range(2**16 + 10)]
    term.exact(texts)
    assert len(term._seen) == 2**16 and len(calls) == len(texts)
    assert term.exact([texts[-1], texts[0], "abc"]).tolist() == [5.0, 1.0, 3.0]
    assert calls[len(texts):] == ["0", "abc"]  # the last is remembered, the first was forgotten


def test_evaluate_still_reads_in_halves(made, monkeypatch):
    lm = made["gpt2"]
    seqs = lm.tokenize(["a cat", "two people", "the dog ran"])
    objective = Objective(Term(Heard(), name="whole"), Term(lm, 0.5))
    close(evaluate(objective, seqs, 1).total, objective(seqs).total)


def test_without_start_and_end_the_first_token_is_given_and_no_other(made):
    lm = made["gpt2"]
    rows = lm.tokenize(["a photo of a cat"])
    n, objective = len(rows[0]), Objective(Term(Fluency(lm)))
    logp = full_logits(lm, rows[0]).log_softmax(-1)
    mean = -sum(logp[i - 1, rows[0][i]] for i in range(1, n))/(n - 1)
    close(gradient(objective, rows)[0][0], mean, 1e-4)
    losses, slopes = token_gradient(objective, rows)
    close(losses[0], mean, 1e-4)
    assert slopes.shape == (1, n - 1, len(lm.embedding_table))
    found, alone = rows[0][1:], Objective(Term(Fluency(lm), reads="found"))
    logp = full_logits(lm, found).log_softmax(-1)
    mean = -sum(logp[i - 1, found[i]] for i in range(1, n - 1))/(n - 2)
    close(gradient(alone, rows)[0][0], mean, 1e-4)


def test_a_text_of_one_token_is_found_where_it_is_read(made):
    "Reread without a template, its embedding is read in its own place; behind one, in the place after it."
    from fuse_nb.terms import reread
    lm = made["gpt2"]
    row = lm.tokenize(["cat"])[0][:1]
    for prefix in ("", "photo "):
        lead = len(lm.tokenize([prefix])[0]) if prefix else 0
        if lm.tokenize([prefix + lm.tokenizer.decode(row)])[0][lead:] != row: continue
        x = torch.randn(1, 1, lm.embedding_table.shape[1], requires_grad=True)
        read, mask = reread(lm, x, [row], prefix)
        assert mask.tolist() == [[1]*(lead + 1)]
        close(read[0, lead], x[0, 0])
        grad = torch.autograd.grad(read[0, lead].sum(), x)[0]
        close(grad, torch.ones_like(grad))
