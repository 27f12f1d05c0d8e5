"Gradient, objective, rankers and the optimizers' cached losses against their definitions, on tiny models of random weights. The searches: `test_optimizer.py`."
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fuse_nb.tables as tables_room
from fuse_nb import FuseAdapter
from fuse_nb.provenance import provenance
from fuse_nb.gradient import bridge, pull, route
from fuse_nb.causal import CausalLM
from fuse_nb.classifiers import Classifier
from fuse_nb.encoders import TextEncoder
from fuse_nb.losses import Fluency, NextTokens, Penalty, TargetText, ZeroShotLabel, banned, length, non_ascii, repetition
from fuse_nb.objective import Objective, Term, gradient
from fuse_nb.search import Result, evaluate
from fuse_nb.autodan import AutoDAN
from fuse_nb.swaps import GCG, RandomSearch
from fuse_nb.tokens import allowed_tokens, token_strings
from fuse_nb.tables import spelling_table, word_table
from fuse_nb.ranking import Fuse, Ranker, State, calibrate, tangents
from fuse_nb.combined import RANKERS, Combined, Surrogate, get_ranker, ridge_fit
from test_models import BERT, SENTENCES, SIZES, V, byte_bpe, causal, word_pieces

transformers = pytest.importorskip("transformers")
close = lambda a, b, tol=1e-5: torch.testing.assert_close(a, b, atol=tol, rtol=tol)
SENTENCE = "a photo of a cat on a mat"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path))


def adapter_of(source, target, tensors):
    return FuseAdapter(tensors, dict(source=provenance(source), target=provenance(target), max_tokens=max(tensors), classes="larger", storage={}), source=source, target=target)


def bert(name, tokenizer, table=None, dtype=torch.float32):
    model = transformers.BertModel(transformers.BertConfig(**BERT))
    with torch.no_grad(): model.embeddings.word_embeddings.weight.copy_(torch.randn(V, 32)*0.3 if table is None else table)
    return TextEncoder(name, model.to(dtype), tokenizer, "cpu")


def source_of(family, dtype=torch.float32):
    model = causal(family)
    with torch.no_grad(): model.get_input_embeddings().weight.normal_(0, 0.3)
    return CausalLM(family, model.to(dtype), byte_bpe("<bos> $A" if family in ("llama", "gemma") else None), "cpu")


@pytest.fixture(scope="module")
def made():
    "Sources, a target that cuts words in its own way, one with the first source's tokens and vectors, and adapters."
    torch.manual_seed(0)
    m = {f: source_of(f) for f in ("gpt2", "qwen2", "llama", "gemma")}
    m["pieces"], m["twin"] = bert("pieces", word_pieces()), bert("twin", byte_bpe(), m["gpt2"].embedding_table.detach())
    eye = lambda l: torch.cat([torch.eye(32)[..., None], torch.zeros(32, 32, l - 1)], 2)
    m["same"] = adapter_of(m["gpt2"], m["twin"], {l: eye(l) for l in (1, 2, 3)})
    for f in ("gpt2", "llama"): m[f"{f}-pieces"] = adapter_of(m[f], m["pieces"], {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
    m["itself"] = adapter_of(m["gpt2"], m["gpt2"], {l: eye(l) for l in (1, 2, 3)})
    return m


class Spelled:
    "Squared distance of the target's input embeddings from those of one sentence, place by place: 0 there and nowhere else."
    label = "spelled"
    def __init__(self, model, text): self.model, self.want, self.seen = model, model.embed(model.tokenize([text])[0]).detach().float(), []

    def losses(self, embeds, mask=None):
        embeds = embeds.float()*(1 if mask is None else mask[..., None])
        n = max(embeds.shape[1], len(self.want))
        return (F.pad(embeds, (0, 0, 0, n - embeds.shape[1])) - F.pad(self.want, (0, 0, 0, n - len(self.want)))).square().sum((1, 2))

    def exact(self, texts):
        self.seen += [texts]
        ids, mask = self.model.pad(self.model.tokenize(texts))
        return self.losses(self.model.embed(ids), mask).detach()


# --- the gradient ------------------------------------------------------------------------------------------------------------------------

def unfold(T): return torch.cat([T[:, :, k] for k in range(T.shape[2])])
def circulant(T): return torch.cat([torch.cat([T[:, :, (i - j) % T.shape[2]] for j in range(T.shape[2])], 1) for i in range(T.shape[2])])
def transpose(T): return torch.stack([T[:, :, -k % T.shape[2]].T for k in range(T.shape[2])], 2)


def words_of(source, target, ids, prefix="", suffix=""):
    "The target's tokens, and the source and target positions of each word; tokens that share a whitespace word are one word."
    lead = len(source.bos_ids)
    text = source.tokenizer.decode(ids[lead:])
    full = prefix + text + suffix
    own = source.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert own["input_ids"] == ids[lead:]
    there = target.tokenizer(full, return_offsets_mapping=True, return_special_tokens_mask=True, truncation=True, max_length=target.max_length)
    tokens = [(0, lead + i, a + len(prefix), b + len(prefix)) for i, (a, b) in enumerate(own["offset_mapping"])]
    tokens += [(1, i, a, b) for i, ((a, b), special) in enumerate(zip(there["offset_mapping"], there["special_tokens_mask"])) if not special]
    groups = []
    for side, i, a, b in tokens:
        while full[a:b].isspace(): b += 1  # a lone space belongs to what follows
        mine = ({len(full[:c + 1].split()) for c in range(a, b) if not full[c].isspace()}, [[], []])
        mine[1][side].append(i)
        for g in [g for g in groups if g[0] & mine[0]]:
            groups.remove(g)
            mine = (g[0] | mine[0], [x + y for x, y in zip(g[1], mine[1])])
        groups.append(mine)
    return there["input_ids"], [(sorted(s), sorted(t)) for _, (s, t) in groups]


def naive_pull(adapter, ids, grad, prefix="", suffix=""):
    "Word by word: the t-product of the gradient with the t-transpose of the adapter."
    out = torch.zeros(len(ids), 32)
    for s, t in words_of(adapter.source, adapter.target, ids, prefix, suffix)[1]:
        for l, cs, ct in adapter.pieces(len(s), len(t)) if s and t else ():
            tube = torch.zeros(1, 32, l)
            for k, p in enumerate(t[ct]): tube[0, :, k] = grad[p]
            back = circulant(tube) @ unfold(transpose(adapter.tensors[l]))
            for k, p in enumerate(s[cs]): out[p] += back[k]
    return out


TEXTS = [" a cat on a mat", "the dog ran after", "two people ride horses unbelievable", " café \U0001f642 cup", "Ace-of-spades! a", " x"]


@pytest.mark.parametrize("prefix, suffix", [("", ""), ("a photo of", "."), ("two: ", "\nthe ball"), ("", " ran")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bridge_equals_the_loop_over_words(made, family, prefix, suffix):
    adapter, source, target = made[f"{family}-pieces"], made[family], made["pieces"]
    seqs = source.tokenize(TEXTS)
    n = max(map(len, seqs))
    x = torch.randn(len(seqs), n, 32, requires_grad=True)
    out, mask = bridge(adapter, x, seqs, prefix, suffix)
    G = torch.randn(out.shape)  # at padding too: it must not reach anything
    grad, = torch.autograd.grad(out, x, G)
    longest = 0
    for b, ids in enumerate(seqs):
        there, groups = words_of(source, target, ids, prefix, suffix)
        assert out[b][mask[b].bool()].equal(target.embed(there)) and mask[b].sum() == len(there)
        close(grad[b, :len(ids)], naive_pull(adapter, ids, G[b], prefix, suffix), 1e-4)
        assert (grad[b, len(ids):] == 0).all()
        assert (grad[b, len(source.bos_ids):len(ids)].norm(dim=1) > 0).all() and (grad[b, :len(source.bos_ids)] == 0).all()
        longest = max(longest, *(len(s) for s, t in groups if t))
    assert longest > 3  # words over the adapter's classes are among them
    one, _ = bridge(adapter, x[0, :len(seqs[0])], seqs[0], prefix, suffix)
    close(torch.autograd.grad(one, x, G[:1, :one.shape[1]])[0][0], grad[0])


def test_the_same_tokens_and_vectors_give_the_exact_gradient(made):
    lm, seqs = made["gpt2"], made["gpt2"].tokenize(TEXTS)
    loss = NextTokens(lm, "the dog ran after the ball")
    n = max(map(len, seqs))
    x = torch.zeros(len(seqs), n, 32)
    for b, s in enumerate(seqs): x[b, :len(s)] = lm.embed(s)
    x.requires_grad_()
    out, mask = bridge(made["itself"], x, seqs)
    through, = torch.autograd.grad(loss.losses(out, mask).sum(), x)
    exact, = torch.autograd.grad(loss.losses(x*1, mask).sum(), x)
    assert exact.norm(dim=-1)[mask.bool()].min() > 0
    close(through, exact)
    tt, same = TargetText(lm, " ran after"), [seqs[0][:4], seqs[1][:4]]  # `gradient` of the bridged term and of the term read directly
    for a, b in zip(gradient(Objective(Term(tt), source=lm), same), gradient(Objective(Term(Bridged(tt), adapter=made["itself"]), source=lm), same)): close(a, b)


class Bridged:
    "A loss of the source itself, as if it were another model's."
    def __init__(self, loss): self.model, self.losses, self.label = loss.lm, loss.losses, "bridged"
    def exact(self, texts): raise AssertionError("not called")


def test_what_the_target_cuts_off_has_no_gradient(made):
    ids = made["gpt2"].tokenize([" a cat on a mat the dog ran"*6])[0]
    x = torch.randn(1, len(ids), 32, requires_grad=True)
    out, mask = bridge(made["gpt2-pieces"], x, [ids])
    G = torch.randn(out.shape)
    grad, = torch.autograd.grad(out, x, G)
    assert out.shape[1] == 32 == made["pieces"].max_length and len(ids) == 48 and (grad[0, 30:] == 0).all() and grad[0, :30].norm(dim=1).min() > 0  # a token a word
    close(grad[0], naive_pull(made["gpt2-pieces"], ids, G[0]), 1e-4)


def test_gradient_errors(made):
    a, x = made["gpt2-pieces"], torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match="one sequence of source_ids for each row"): bridge(a, x, [[5, 6, 7], [5]])
    with pytest.raises(ValueError, match="3 positions, the longest of source_ids 2"): bridge(a, x, [[5, 6]])
    with pytest.raises(ValueError, match="at least one token"): bridge(a, x, [[]])
    with pytest.raises(ValueError, match="at least one sequence"): route(a, [])
    with pytest.raises(ValueError, match="vocabulary"): route(a, [[V + 5]])
    with pytest.raises(ValueError, match="target_grad must be"): pull(a, route(a, [[5, 6, 7]]), torch.zeros(1, 99, 32))


# --- the objective -----------------------------------------------------------------------------------------------------------------------

def full_logits(lm, ids): # (n, V) of one row, no cache, no padding
    with torch.no_grad(): return lm.model(input_ids=torch.tensor([ids])).logits[0].float()


def test_values_of_a_candidate_do_not_depend_on_the_batch(made):
    lm, judge = made["gpt2"], made["llama"]
    terms = [Term(lm, 0.5), Term(TargetText(lm, " ran after"), 2.0), Term(NextTokens(judge, "the dog")), Term(ZeroShotLabel(judge, "positive"), 3.0), Term(made["pieces"].text("a dog"), 22.0), Term(length(4))]
    seqs = lm.tokenize(TEXTS*2)[:-1]
    objective = Objective(*terms)
    values = objective(seqs)
    assert list(values.terms) == [t.name for t in terms] and values.total.shape == (11,)
    close(values.total, sum(t.weight*values.terms[t.name] for t in terms))
    for i in (0, 2, 5):
        alone = Objective(*[Term(t.loss, t.weight) for t in terms])([seqs[i]])
        for name, v in alone.terms.items(): close(v[0], values.terms[name][i])
        assert values[i][0] == pytest.approx(alone[0][0], abs=1e-4)
    calls = []
    counted = Term(Penalty("counted", lambda t: calls.append(t) or 0.0))
    counted.exact(["a", "b", "a"]), counted.exact(["b", "c"])
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma"])
def test_fluency_equals_its_definition(made, family):
    lm = made[family]
    seqs = lm.tokenize(["a cat on a mat", "two people ride", "the dog ran after the ball"])
    for start in (1, 3):
        want = torch.stack([-full_logits(lm, s).log_softmax(-1)[range(start - 1, len(s) - 1), s[start:]].mean() for s in seqs])
        close(Fluency(lm).exact_ids(seqs, start), want)
        close(torch.cat([Fluency(lm).embed_losses(lm.embed([s]), start) for s in seqs]), want, 1e-4)
    assert torch.equal(Fluency(lm).exact_ids([seqs[0]], 0), Fluency(lm).exact_ids([seqs[0]], 1))
    with pytest.raises(ValueError, match="does not tie"): Fluency(made["llama"]).embed_losses(made["llama"].embed([seqs[0]]))


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_fluency_of_embeddings_where_logits_are_more_than_a_product(family):
    "Gemma 2 bends its logits, Granite and Cohere scale them: equal to the definition, or refused by name."
    t, sizes = transformers, dict(SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    model = {"gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=5.0)),
             "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**sizes, logits_scaling=8.0)), "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**sizes))}[family]()
    with torch.no_grad(): model.get_input_embeddings().weight.normal_(0, 0.6)
    lm = CausalLM(family, model, byte_bpe(), "cpu")
    seqs = lm.tokenize(["a cat on a mat"])
    try: said = Fluency(lm).embed_losses(lm.embed(seqs))
    except ValueError as e: assert family in str(e)
    else: close(said, Fluency(lm).exact_ids(seqs), 1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_next_tokens_and_zero_shot_label_equal_their_definitions(made, family):
    lm, texts = made[family], ["a cat", "a cat on a mat", "a dog", "a cat on a cup of coffee"]
    last = lambda t: full_logits(lm, lm.tokenize([t])[0])[-1]
    kl, p = NextTokens(lm, "the ball"), last("the ball").softmax(-1)
    want = torch.stack([(p*(p.log() - last(t).log_softmax(-1))).sum() for t in texts])
    close(kl.exact(texts), want, 1e-4)
    assert kl.exact(["the ball"]).abs() < 1e-5 and (want > 0).all()
    ids, mask = lm.pad(lm.tokenize(texts))
    close(kl.losses(lm.embed(ids), mask), want, 1e-4)
    first = [lm.tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in ("good", "bad")]
    odds = lambda t: (last(t)[first[0]] - last(t)[first[1]]).item()
    for label, sign in (("good", 1), ("bad", -1)):
        term = Term(ZeroShotLabel(lm, label, ("good", "bad"), neutral="a mat", prefix="two: ", suffix=" the dog:"))
        want = [math.log1p(math.exp(-sign*(odds(f"two: {t} the dog:") - odds("two: a mat the dog:")))) for t in texts]
        close(term.exact(texts), torch.tensor(want), 1e-4)
        assert term.exact(["a mat"]).item() == pytest.approx(math.log(2), abs=1e-5)


def test_target_text_equals_its_definition(made):
    lm, loss = made["qwen2"], TargetText(made["qwen2"], " ran after the ball")
    seqs = lm.tokenize(TEXTS)
    want = torch.stack([F.cross_entropy(full_logits(lm, s + loss.ids)[len(s) - 1:-1], torch.tensor(loss.ids)) for s in seqs])
    close(loss.exact_ids(seqs), want, 1e-4)
    ids, mask = lm.pad(seqs)
    close(loss.losses(lm.embed(ids), mask), want, 1e-4)


def test_penalties_count():
    assert repetition().exact(["a cat, a Cat", "one two", ""]).tolist() == [0.5, 0.0, 0.0]
    assert non_ascii().exact(["caf\u00e9", "cafe", ""]).tolist() == [0.25, 0.0, 0.0]
    assert length(4).exact(["one two", "a b c d", "a b c d e f"]).tolist() == [0.5, 0.0, 0.5]
    assert banned("Photo", "image").exact(["a photo, an IMAGE of photography", "a cat"]).tolist() == [2.0, 0.0]


def test_a_term_of_weight_zero_is_reported_and_not_summed(made):
    lm, never = made["gpt2"], Penalty("never", lambda t: float("inf"))
    values = Objective(Term(lm), Term(never, 0.0))(lm.tokenize(["a dog", "a cat"]))
    assert torch.equal(values.total, values.terms["fluency"]) and values.terms["never"].isinf().all()
    assert Objective(Term(lm, 0.0))(lm.tokenize(["a dog"])).total.tolist() == [0.0]


def test_objective_errors(made):
    lm, nan = made["gpt2"], Penalty("odd", lambda t: float("nan") if "cat" in t else 1.0)
    with pytest.raises(FloatingPointError, match="'odd'"): Objective(Term(lm), Term(nan))(lm.tokenize(["a dog", "a cat"]))
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="finite"): Term(lm, bad)
    with pytest.raises(ValueError, match="no tokens"): TargetText(lm, "")
    with pytest.raises(ValueError, match="reference is empty"): NextTokens(lm, "")
    with pytest.raises(ValueError, match="positive, negative"): ZeroShotLabel(lm, "sad")
    with pytest.raises(ValueError, match="'length' has no gradient.*leave the adapter out"): Term(length(3), adapter=made["same"])
    with pytest.raises(ValueError, match="same token"): ZeroShotLabel(lm, "cat", ("cat", "cat"))
    with pytest.raises(ValueError, match="at least one Term"): Objective()
    with pytest.raises(TypeError, match="wrap it"): Objective(lm)
    with pytest.raises(TypeError, match=r"exact\(texts\)"): Term("a string")
    with pytest.raises(ValueError, match="source="): Objective(Term(length(3)))
    with pytest.raises(ValueError, match="'fluency'.*name="): Objective(Term(lm), Term(lm))
    with pytest.raises(ValueError, match="not the source"): Objective(Term(made["qwen2"]), source=lm)
    with pytest.raises(ValueError, match="adapter does not fit.*source"): Objective(Term(made["qwen2"]), Term(made["pieces"].text("a dog"), adapter=made["gpt2-pieces"]))
    with pytest.raises(ValueError, match="adapter does not fit.*target"): Objective(Term(lm), Term(made["twin"].text("a dog"), adapter=made["gpt2-pieces"]))
    for call in (lambda: length(0), lambda: banned()):
        with pytest.raises(ValueError, match="at least"): call()
    with pytest.raises(ValueError, match="no term of the objective has a gradient"): gradient(Objective(Term(length(3)), source=lm), [[5, 6]])
    with pytest.raises(ValueError, match="one length"): gradient(Objective(Term(lm)), [[5, 6], [5]])
    labels = dict(num_labels=2, id2label={0: "sad", 1: "glad"}, label2id={"sad": 0, "glad": 1})
    sorts = Classifier("sorts", transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, **labels)), word_pieces(), "cpu")
    with pytest.raises(ValueError, match="sad, glad"): sorts.label("happy")


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma"])
def test_gradient_of_source_terms(made, family):
    lm, start = made[family], 2
    objective = Objective(Term(lm, 0.7), Term(TargetText(lm, " ran after"), 1.3))
    seqs, tail = [s[:5] for s in lm.tokenize(["a cat on a mat the", "two people ride horses"])], objective.terms[1].loss.ids
    loss, grad = gradient(objective, seqs, start)
    close(loss, objective(seqs, start).total, 1e-4)
    table, head = lm.embedding_table, lm.model.get_output_embeddings().weight

    def naive(x):  # (b, 5, d) -> (b,), from one plain pass of the model; the weight that scores a token is its vector, in the output's scale
        hidden = lm.model.base_model(inputs_embeds=torch.cat([x, table[tail].expand(len(x), -1, -1)], 1)).last_hidden_state
        log_p = (hidden @ head.T).log_softmax(-1)
        score = (hidden[:, start - 1:4] * x[:, start:] * head.norm()/table.norm()).sum(-1) - (hidden[:, start - 1:4] @ head.T).logsumexp(-1)
        return -0.7*score.mean(1) - 1.3*log_p[:, range(4, 4 + len(tail)), tail].mean(1)

    x = lm.embed(seqs).clone().requires_grad_()
    close(grad, torch.autograd.grad(naive(x).sum(), x)[0], 1e-4)
    step = 1e-2*F.normalize(grad.flatten(1), dim=1).view_as(grad)
    with torch.no_grad(): slope = naive(x + step) - naive(x - step)
    close(slope, 2*(grad*step).sum((1, 2)), 2e-2)


def test_gradient_of_a_bridged_term_with_a_template(made):
    "Weights, templates and rows: the sum of the naive gradients of every term."
    lm, target, adapter = made["gpt2"], made["pieces"], made["gpt2-pieces"]
    goal = target.text("the dog ran")
    seqs = [s[:5] for s in lm.tokenize(["a cat on a mat the", "unbelievable"])]
    loss, grad = gradient(Objective(Term(lm, 0.7), Term(goal, 22.0, adapter, "two people: ", " ride"), Term(length(3), 9.0)), seqs, 2)
    own = gradient(Objective(Term(lm, 0.7)), seqs, 2)
    for b, ids in enumerate(seqs):
        leaf = target.embed([words_of(lm, target, ids, "two people: ", " ride")[0]]).clone().requires_grad_()
        value = goal.losses(leaf)
        there, = torch.autograd.grad(value.sum(), leaf)
        close(loss[b], own[0][b] + 22*value[0].detach(), 1e-4)
        close(grad[b], own[1][b] + 22*naive_pull(adapter, ids, there[0], "two people: ", " ride"), 1e-3)


# --- rankers -----------------------------------------------------------------------------------------------------------------------------

def state_of(lm, text, chosen=0, right="", **more):
    left = lm.tokenize([text])[0]
    scored = len(left) - chosen
    nll = lm.nll([left], prefix_len=scored).item() if chosen else 0.0
    return State(lm, left, full_logits(lm, left)[-1].log_softmax(-1), allowed_tokens(lm), lm.tokenizer(right, add_special_tokens=False)["input_ids"] if right else [], nll, chosen, **more)


def test_state(made):
    lm, s = made["gpt2"], state_of(made["gpt2"], "a photo of a cat", chosen=2, seed=5)
    tokens, start = [10, 100, 300], len(s.left) - 2
    close(s.fluency()[tokens], Objective(Term(lm))(s.rows(tokens), start).total, 1e-4)
    assert s.texts([300]) == ["a photo of a cat" + token_strings(lm)[300]] and s.rows([7]) == [s.left + [7]]
    strings = token_strings(lm)
    assert all(t.isascii() and t.isprintable() and t.strip() for t, ok in zip(strings, s.allowed) if ok) and not s.allowed[:4].any() and 100 < s.allowed.sum() < V
    assert s.allowed.tolist() == [i > 3 and t.isascii() and t.isprintable() and bool(t.strip()) for i, t in enumerate(strings)]
    drawn, likely = s.expansions(10), set(s.logprobs.masked_fill(~s.allowed, -99).topk(64).indices.tolist())
    assert len(set(drawn.tolist())) == 10 and s.allowed[drawn].all() and torch.equal(drawn, s.expansions(10))
    assert [i in likely for i in drawn.tolist()] == [True, False]*5 and all(torch.equal(s.expansions(n), drawn[:n]) for n in (1, 4, 9))
    assert not torch.equal(drawn, state_of(lm, "a photo of a cat", seed=6).expansions(10))
    assert len(s.expansions(10**4)) == s.allowed.sum()


@pytest.mark.parametrize("family, right", [("gpt2", ""), ("llama", " on a mat")])
def test_tangents_equal_the_definition(made, family, right):
    lm, target, adapter = made[family], made["pieces"], made[f"{family}-pieces"]
    term = Term(target.text("the dog ran"), adapter=adapter, prefix="two people: ", suffix=" ride")
    states = [state_of(lm, "a photo of", right=right), state_of(lm, "a cup of coffee in the", right=right)]
    by_string = {t: i for i, t in enumerate(token_strings(lm))}
    tokens = [torch.tensor([by_string[t] for t in ts]) for ts in ((" cat", "er", " the"), (" horses", " dog"))]
    for s, ts, found in zip(states, tokens, tangents(term, states, tokens)):
        close(found.losses, term.loss.exact([f"two people: {t} ride" for t in s.texts(ts)]))
        for i, row in enumerate(s.rows(ts)):
            there, groups = words_of(lm, target, row, term.prefix, term.suffix)
            leaf = target.embed([there]).clone().requires_grad_()
            grad, = torch.autograd.grad(term.loss.losses(leaf).sum(), leaf)
            mine = next(t for s_, t in groups if len(s.left) in s_)
            close(found.target[i], grad[0, mine].sum(0))
            close(found.source[i], naive_pull(adapter, row, grad[0], term.prefix, term.suffix)[len(s.left)])
        again = Term(term.loss, prefix=term.prefix, suffix=term.suffix)
        assert tangents(again, [s], [ts])[0].source is None
        with pytest.MonkeyPatch.context() as m:  # what a tangent cost is not paid twice
            m.setattr(type(term.loss), "exact", lambda *a: pytest.fail("evaluated again"))
            close(term.exact(s.texts(ts)), found.losses)
    with pytest.raises(ValueError, match="'length' has no gradient"): tangents(Term(length(3)), states, tokens)


def test_calibrate_is_the_best_line_that_does_not_fall():
    raw, tokens, noise = torch.randn(50), torch.arange(0, 40, 4), torch.randn(10)
    slope, level = np.polyfit(raw[tokens].double(), (3*raw[tokens] + noise + 7).double(), 1)
    close(calibrate(raw, tokens, 3*raw[tokens] + noise + 7), (slope*raw + level).float(), 1e-4)
    falling = 7 - 3*raw[tokens]
    close(calibrate(raw, tokens, falling), falling.mean().expand(50))
    close(calibrate(torch.ones(50), tokens, noise), noise.mean().expand(50))


def test_ridge_fit_equals_ridge_regression_in_primal_form():
    torch.manual_seed(1)
    k, rows, p, d, noise, kernel, share, level = 3, 30, 2, 5, 0.3, 0.7, 0.6, 4.0
    X, table = [torch.randn(rows, p) for _ in range(k)], torch.randn(rows, d)
    tokens = [torch.randperm(rows)[:n] for n in (4, 6, 8)]
    losses = [torch.randn(len(t)) + 5*j for j, t in enumerate(tokens)]
    def features(j):  # every feature's scale is the root of its weight's prior variance: a common block, a block a slot, a constant a slot
        both = torch.cat([X[j], kernel**0.5*table], 1).double()
        own = [((1 - share)**0.5*both if i == j else 0*both) for i in range(k)]
        return torch.cat([share**0.5*both, *own, level**0.5*F.one_hot(torch.tensor([j]*rows), k).double()], 1)
    spread = torch.stack([y.std() for y in losses]).mean().double()
    A = torch.cat([features(j)[t] for j, t in enumerate(tokens)])
    y = torch.cat([(y - y.mean()).double()/spread for y in losses])
    w = torch.linalg.solve(A.T @ A + noise*torch.eye(A.shape[1]).double(), A.T @ y)
    want = torch.stack([losses[j].mean() + spread*(features(j) @ w) for j in range(k)]).float()
    close(ridge_fit(X, tokens, losses, noise, table, kernel, share, level), want, 1e-3)
    plain = ridge_fit([torch.cat([x, kernel**0.5*table], 1) for x in X], tokens, losses, noise, None, 1.0, share, level)
    close(plain, want, 1e-3)


def test_ridge_fit_takes_the_likeliest_correlation_of_slots():
    "The world draws the slots' weights with a correlation that is one of three; the density of the known losses, from torch.distributions, must choose alike."
    g = torch.Generator().manual_seed(3)
    k, rows, p, noise, level, n = 4, 60, 30, 0.1, 4.0, 40
    X, slot, chosen = torch.randn(rows, p, generator=g)/p**0.5, torch.arange(k).repeat_interleave(n), []
    now = torch.arange(k) < 2
    shares = [torch.where(now[:, None] == now, 0.9, 0.9*m) for m in (0.0, 1.0)]
    for true in (0, 1, 0, 1):
        root = torch.linalg.cholesky(shares[true].clone().fill_diagonal_(1) + 1e-6*torch.eye(k))
        weights = root @ torch.randn(k, p, generator=g)
        tokens = [torch.randperm(rows, generator=g)[:n] for _ in range(k)]
        losses = [X[t] @ w + noise**0.5*torch.randn(n, generator=g) for t, w in zip(tokens, weights)]
        spread, A = torch.stack([y.std() for y in losses]).mean(), X[torch.cat(tokens)]
        z, own = torch.cat([y - y.mean() for y in losses])/spread, (slot[:, None] == slot).float()
        def density(share):
            cov = (A @ A.T)*share.clone().fill_diagonal_(1)[slot][:, slot] + level*own + noise*torch.eye(len(z))
            return torch.distributions.MultivariateNormal(torch.zeros(len(z)).double(), cov.double()).log_prob(z.double()).item()
        chosen.append(int(density(shares[1]) > density(shares[0])))
        one = ridge_fit([X]*k, tokens, losses, noise, share=[shares[chosen[-1]]], level=level)
        both = ridge_fit([X]*k, tokens, losses, noise, share=shares, level=level)
        close(both, one); assert not torch.allclose(one, ridge_fit([X]*k, tokens, losses, noise, share=[shares[1 - chosen[-1]]], level=level), atol=1e-3)
        close(ridge_fit([X]*k, tokens, losses, noise, share=shares, level=level, wanted=2), both[:2])
    assert chosen == [0, 1, 0, 1]


def test_a_slot_that_others_help_tries_fewer_words(made):
    lm, told = made["gpt2"], ((5,), [6, 7])
    table, none, penalty = Term(made["pieces"].text("the dog ran")), Term(Spelled(made["twin"], SENTENCE)), Term(repetition())
    one, two, later = [state_of(lm, "a")], [state_of(lm, "a"), state_of(lm, "the")], [state_of(lm, "a")]
    later[0].earlier = told
    for terms, states, n in ([table], one, 10), ([table], two, 5), ([table], later, 5), ([none], two, 10), ([table, none], two, 5), ([none, penalty], two, 10), ([table, penalty], two, 5), ([penalty], two, 0):
        assert Combined(10).tries(terms, states) == n
        assert Combined(10, again=3).tries(terms, states) == {5: 3}.get(n, n)
    for terms, states in ([table], one), ([table], two):
        term, n = terms[0], Combined(10).tries(terms, states)
        term._seen.clear(); Combined(10).predict_all(term, states)
        assert set(term._seen) == {t for s in states for t in s.texts(s.expansions(n))}


def test_a_slot_learns_from_the_slot_before_it(made):
    "In a search, what a state knows of the slot before is what was evaluated there, and asking for it costs nothing; where losses say so, it is used."
    lm, seen, calls = made["gpt2"], [], []
    class Watch(Combined):
        def predict_all(self, term, states, lender=None):
            seen.append([(s.left, s.earlier) for s in states]); before = set(term._seen)
            out = super().predict_all(term, states, lender)
            calls.append(set(term._seen) - before)
            return out
    term = lambda: Term(made["pieces"].text("the dog ran"), 20.0, adapter=made["gpt2-pieces"])
    objective = Objective(Term(lm, 0.3), term())
    run = AutoDAN(steps=4, beam=3, candidates=6, ranker=Watch(4), progress=False).minimize(objective, "a photo of")
    assert all(e is None for _, e in seen[0]) and all(e for step in seen[1:] for _, e in step)
    judged = objective.terms[1]._seen
    for step, new in zip(seen[1:], calls[1:]):
        for left, (before, tried) in step:
            assert list(before) == left[:-1] and left[-1] in tried and len(tried) == len(set(tried)) > 1
            texts = lm.tokenizer.batch_decode([list(before) + [t] for t in tried], clean_up_tokenization_spaces=False)
            assert set(texts) <= set(judged) and not set(texts) & new
    assert ["tried" in n for t in run.trace for n in t["frontier"]] == [False]*sum(len(t["frontier"]) for t in run.trace[:-1]) + [True]*len(run.trace[-1]["frontier"])
    left = lm.tokenize(["a photo of the"])[0]
    state = lambda earlier: State(lm, left, full_logits(lm, left)[-1].log_softmax(-1), allowed_tokens(lm), earlier=earlier)
    told = (tuple(left[:-1]), allowed_tokens(lm).nonzero().flatten()[:12].tolist())
    alone, after, never = (r.predict(term(), state(e)) for r, e in ((Combined(4), None), (Combined(4, memory=(1.0,)), told), (Combined(4, memory=(0.0,)), told)))
    assert not torch.allclose(alone, after, atol=1e-4) and alone.shape == after.shape == never.shape


@pytest.mark.parametrize("name", list(RANKERS))
def test_every_ranker_has_a_name_and_a_seed(made, name):
    lm, ranker = made["gpt2"], get_ranker(name)
    assert type(ranker) is RANKERS[name] and get_ranker(ranker) is ranker
    fresh = lambda: Objective(Term(lm, 0.3), Term(made["pieces"].text("the dog ran"), 20.0, adapter=made["gpt2-pieces"]), Term(repetition()))
    states = lambda seed: [state_of(lm, "a photo of a", 1, seed=seed), state_of(lm, "a photo of the", 1, seed=seed + 1)]
    first = ranker.rank_all(fresh(), states(3))
    assert first.shape == (2, V) and first.dtype == torch.float32 and first.isfinite().all()
    assert torch.equal(first, get_ranker(name).rank_all(fresh(), states(3)))
    if name in ("random", "fuse", "vocabulary", "surrogate", "combined"): assert not torch.equal(first, ranker.rank_all(fresh(), states(4)))
    if name not in ("surrogate", "combined", "as-published"): close(first[1], ranker.rank(fresh(), states(3)[1]))  # slots do not learn from each other; the published code sums over the beam
    bare = Objective(Term(lm), Term(made["pieces"].text("the dog"), adapter=None))
    if name in ("fuse", "as-published"):
        with pytest.raises(ValueError, match="needs an adapter"): ranker.rank(bare, states(3)[0])
    else: assert ranker.rank(bare, states(3)[0]).isfinite().all()


def test_ranker_errors(made):
    with pytest.raises(ValueError, match=", ".join(RANKERS)): get_ranker("nearest")
    with pytest.raises(TypeError, match="rank"): get_ranker(3)
    with pytest.raises(NotImplementedError): Ranker().predict_all(None, [])
    for bad in (lambda: Fuse(0), lambda: Combined(1), lambda: Combined(gradients=-1), lambda: Combined(again=1)):
        with pytest.raises(ValueError, match="must be"): bad()
    with pytest.raises(ValueError, match="use 'vocabulary'"): get_ranker("words").predict(Term(Spelled(made["twin"], SENTENCE)), state_of(made["gpt2"], "a"))


def test_fuse_is_exact_where_the_loss_is_linear(made):
    lm, twin, g = made["gpt2"], made["twin"], torch.randn(32)
    class Linear:
        model, label = twin, "linear"
        def losses(self, embeds, mask=None): return ((embeds @ g)*(1 if mask is None else mask)).sum(1)
        def exact(self, texts): return torch.stack([self.losses(twin.embed([i]))[0] for i in twin.tokenize(texts)])
    term, s = Term(Linear(), adapter=made["same"]), state_of(lm, "a photo of")
    tokens = [v for v in range(4, V) if s.allowed[v] and token_strings(lm)[v][:1] == " "]  # one token in both
    for n in (1, 4, 16): close(Fuse(n).predict(term, s)[tokens], term.exact(s.texts(tokens)), 1e-3)


@pytest.mark.parametrize("kind", [Surrogate, Combined])
def test_without_noise_known_losses_are_returned(made, kind):
    lm, term = made["gpt2"], Term(made["twin"].text("the dog ran"), adapter=made["same"])
    states = [state_of(lm, "a photo of", seed=1), state_of(lm, "two people ride", seed=2)]
    said = kind(n=6, again=6, noise=1e-5).predict_all(term, states)
    for s, row in zip(states, said):
        known = term.loss.exact(s.texts(s.expansions(6)))
        assert known.std() > 0
        close(row[s.expansions(6)], known, 1e-3)
    loose = kind(n=6, again=6, noise=10.0).predict_all(term, states)
    assert (loose[0, states[0].expansions(6)] - term.loss.exact(states[0].texts(states[0].expansions(6)))).abs().max() > 5e-3


def test_tables(made):
    lm, pieces, strings = made["gpt2"], made["pieces"], token_strings(made["gpt2"])
    i, j = strings.index(" horses"), strings.index("mat")
    table = word_table(lm, pieces)
    close(table[[i, j]], pieces.encode(["An image of a horses", "mat"]), 1e-2)  # kept in half precision
    ids = pieces.tokenizer("espr", add_special_tokens=False)["input_ids"]
    close(spelling_table(lm, pieces)[strings.index("espr")], pieces.embedding_table[ids].mean(0))
    assert table.shape == (V, 32) and (spelling_table(lm, pieces)[1] == 0).all() == (not pieces.tokenizer(strings[1].strip(), add_special_tokens=False)["input_ids"])


def again(model, **attributes):
    "The same model as a new object, which has kept nothing yet."
    new = type(model)(model.name, model.model, model.tokenizer, "cpu")
    for name, value in attributes.items(): setattr(new, name, value)
    return new


def all_tables(lm, target): return token_strings(lm), spelling_table(lm, target), word_table(lm, target)


def test_tables_read_from_the_cache_equal_the_fresh_ones(made, monkeypatch, tmp_path, caplog):
    lm, target, cached = made["gpt2"], made["pieces"], tables_room.cached
    fresh = all_tables(again(lm), again(target))
    same = lambda a, b: a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
    with monkeypatch.context() as m:
        m.setattr(tables_room, "cached", lambda name, load, make, save: cached(name, load, lambda: pytest.fail(f"{name} is made again"), save))
        assert same(all_tables(again(lm), again(target)), fresh)
    kept = [f for f in (tmp_path/"tables").glob("*/*") if f.is_file() and f.name != "hashes.json"]
    assert len(kept) == 3
    for f in kept: f.write_bytes(f.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, logger="fuse_nb"): assert same(all_tables(again(lm), again(target)), fresh)
    assert len(caplog.records) == 3 and all("damaged" in r.getMessage() for r in caplog.records)
    assert same(all_tables(again(lm), again(target)), fresh) and len(caplog.records) == 3


def test_a_table_of_another_model_is_not_taken(made, caplog):
    lm, target, strings = made["gpt2"], made["pieces"], token_strings(made["gpt2"])
    all_tables(again(lm), again(target))
    other = bert("pieces", target.tokenizer, target.embedding_table)  # name, tokens and vectors alike; its layers differ
    with torch.no_grad():
        for p in other.model.encoder.parameters(): p.normal_(0, 0.3)
    close(word_table(again(lm), other)[strings.index("mat")], other.encode(["mat"])[0], 1e-2)
    assert "not what it was" in caplog.text
    second = bert("second", target.tokenizer)
    close(spelling_table(again(lm), second)[strings.index("mat")], second.embedding_table[second.tokenizer("mat", add_special_tokens=False)["input_ids"]].mean(0))


def test_sources_of_one_name_have_tables_of_their_own(made):
    lm, target = made["gpt2"], again(made["pieces"])
    other = CausalLM(lm.name, lm.model, word_pieces(), "cpu")  # the name of a folder says nothing of what was changed in memory
    first = all_tables(again(lm), target)
    for a, b, c in zip(first[1:], all_tables(other, target)[1:], all_tables(again(other), again(target))[1:]):
        assert torch.equal(b, c) and not torch.equal(a, b)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rankers_equal_their_definitions(made, family):
    lm, target, adapter, weight = made[family], made["pieces"], made[f"{family}-pieces"], 20.0
    term = Term(target.text("the dog ran"), weight, adapter, "two: ", " ride")
    objective, s = Objective(Term(lm, 0.3), term, Term(repetition())), state_of(lm, "a photo of", chosen=1, seed=2)
    fluency, strings, drawn = 0.3*s.fluency(), token_strings(lm), s.expansions(16)
    close(get_ranker("lm").rank(objective, s), fluency)
    alone = term.loss.exact(["An image of a" + t if t[:1].isspace() else t.strip() for t in strings])
    close(get_ranker("words").rank(objective, s), fluency + weight*alone, weight*2e-3)  # the table is kept in half precision
    naive = {}  # of each expansion word: loss, gradient at its own target tokens, gradient through the adapter
    for v in drawn.tolist():
        there, groups = words_of(lm, target, s.left + [v], "two: ", " ride")
        leaf = target.embed([there]).clone().requires_grad_()
        loss = term.loss.losses(leaf)
        grad = torch.autograd.grad(loss.sum(), leaf)[0][0]
        naive[v] = loss.item(), grad[next(t for w, t in groups if len(s.left) in w)].sum(0), naive_pull(adapter, s.left + [v], grad, "two: ", " ride")[len(s.left)]
    known = torch.tensor([naive[v][0] for v in drawn.tolist()])
    spelled = torch.stack([target.embedding_table[i].mean(0) if i else torch.zeros(32) for i in target.tokenizer([t.strip() for t in strings], add_special_tokens=False)["input_ids"]])
    for name, k, table in (("vocabulary", 1, spelled), ("fuse", 2, lm.embedding_table)):
        said = calibrate(table @ torch.stack([naive[v][k] for v in drawn.tolist()]).mean(0), drawn, known)
        close(get_ranker(name).rank(objective, s), fluency + weight*said, 1e-3)


# --- what the optimizers keep, against evaluations from scratch ----------------------------------------------------------------------------

def oldest_first(new, older, beam):
    "Goes back to several texts of one length at once, which are in no cache any more."
    return sorted(older or new, key=lambda n: len(n.ids))[:beam]


@pytest.mark.parametrize("strategy", ["beam", "uniform-cost", oldest_first])
@pytest.mark.parametrize("family, suffix", [("gpt2", ""), ("qwen2", " on a mat"), ("llama", " on a mat"), ("gemma", "")])
def test_every_loss_of_autodan_equals_one_from_scratch(made, family, suffix, strategy):
    lm, nodes = made[family], {}
    terms = lambda: (Term(lm, 0.5), Term(made["pieces"].text("the dog ran"), 20.0), Term(NextTokens(made["llama"], "the ball"), prefix="two: "), Term(repetition()))
    keep = lambda row: nodes.update({tuple(n["ids"]): n for n in row["frontier"] + row.get("open", [])})
    r = AutoDAN(steps=5, beam=3, candidates=6, ranker="lm", strategy=strategy, callback=keep, progress=False).minimize(Objective(*terms(), source=lm), "a photo of", suffix)
    left, right = lm.tokenize(["a photo of"])[0], lm.tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
    assert len(r.trace) == 5 and ({len(i) - len(left) for i in nodes} == {1, 2, 3, 4, 5} if strategy == "beam" else len(nodes) > 20)
    rows = [[*i, *right] for i in nodes]
    scratch = Objective(*terms(), source=lm)
    close(torch.tensor([n["total"] for n in nodes.values()]), scratch(rows, len(left)).total, 1e-4)
    logprobs = [full_logits(lm, list(i)).log_softmax(-1) for i in nodes]
    close(torch.tensor([n["nll"] for n in nodes.values()]), torch.stack([-p[range(len(left) - 1, len(i) - 1), i[len(left):]].sum() for i, p in zip(nodes, logprobs)]), 1e-4)
    assert all(n["count"] == len(i) - len(left) for i, n in nodes.items()) and r.ids[:len(left)] == left and r.ids[len(r.ids) - len(right):] == right
    total, each = scratch([r.ids], len(left))[0]
    assert r.loss == pytest.approx(total, abs=1e-4) and r.terms == pytest.approx(each, abs=1e-4)


def test_a_device_that_only_says_out_of_memory(made):
    "MPS raises a plain RuntimeError."
    class Small(Objective):
        sizes, fault = [], "MPS backend out of memory (MPS allocated: 9 GB)"
        def __call__(self, seqs, start=1):
            self.sizes.append(len(seqs))
            if len(seqs) > 2: raise RuntimeError(self.fault)
            return super().__call__(seqs, start)
    terms, rows = (Term(made["gpt2"], 0.5), Term(made["pieces"].text("a dog"))), made["gpt2"].tokenize(TEXTS + ["a cup"])
    small, want = Small(*terms), Objective(*terms)(rows, 1)
    got = evaluate(small, rows, 1)
    close(got.total, want.total)
    for name in want.terms: close(got.terms[name], want.terms[name])
    assert small.sizes[0] == 7 and max(small.sizes[1:]) < 7
    small.fault = "shapes do not fit"
    with pytest.raises(RuntimeError, match="shapes"): evaluate(small, rows, 1)


class Interrupted(Spelled):
    "Ctrl-C arrives in the evaluation after `after` of them."
    after = None
    def exact(self, texts):
        if len(self.seen) == self.after: raise KeyboardInterrupt
        return super().exact(texts)


SEARCHES = dict(beam=lambda: AutoDAN(steps=4, beam=2, candidates=8, progress=False), gcg=lambda: GCG(steps=4, length=8, candidates=24, progress=False),
                random=lambda: RandomSearch(steps=4, length=8, candidates=24, progress=False))
for name, strategy in (("uniform-cost", "uniform-cost"), ("oldest", oldest_first)):
    SEARCHES[name] = lambda strategy=strategy: AutoDAN(steps=4, beam=2, candidates=8, strategy=strategy, progress=False)


def interrupted_search(made, name, after=None, resume=None): # the result, and after how many evaluations of the loss there is something to keep
    loss = Interrupted(made["twin"], SENTENCE)
    loss.after = after
    r = SEARCHES[name]().minimize(Objective(Term(loss, adapter=made["same"]), source=made["gpt2"]), "a photo of", seed=3 if name == "beam" else 7, resume=resume)  # seeds with which something is dropped
    return r, range(2 if isinstance(SEARCHES[name](), AutoDAN) else 1, len(loss.seen))


@pytest.mark.parametrize("name", list(SEARCHES))
def test_an_interruption_in_the_middle_of_a_step(made, name):
    "Most of a step is evaluation, so that is where Ctrl-C arrives; a continued run does the step again."
    whole, points = interrupted_search(made, name)
    assert len(points) >= 4 and len(whole.trace) == 4
    for after in points:
        part, _ = interrupted_search(made, name, after)
        assert part.stopped == "interrupted" and len(part.trace) < 4 and part.loss >= whole.loss
        rest, _ = interrupted_search(made, name, resume=Result.from_json(part.to_json()))
        assert (rest.text, rest.ids, rest.evaluations, rest.stopped) == (whole.text, whole.ids, whole.evaluations, whole.stopped)
        assert [t["text"] for t in rest.trace] == [t["text"] for t in whole.trace] and rest.loss == pytest.approx(whole.loss, abs=1e-5)
    with pytest.raises(KeyboardInterrupt): interrupted_search(made, name, 0)  # nothing was evaluated yet


@pytest.mark.parametrize("name", ["beam", "gcg", "random"])
def test_what_a_broken_off_step_dropped_is_not_counted_twice(made, name):
    whole, points = interrupted_search(made, name)
    assert whole.dropped > 0
    for after in points[::2]:
        rest, _ = interrupted_search(made, name, resume=Result.from_json(interrupted_search(made, name, after)[0].to_json()))
        assert rest.dropped == whole.dropped == rest.trace[-1]["dropped"]
