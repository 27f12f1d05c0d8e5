"Rankers, slots and tables against their definitions, on tiny models of random weights. See also `test_search.py`."
# ruff: noqa: F811 (fixtures are imported)
import copy
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pretend import DEVICE, Machine  # before autograd is used: its threads are counted once
import torch
import torch.nn.functional as F

import fuse_nb.tables as tables_room
from fuse_nb.combined import RANKERS, Combined, get_ranker
from fuse_nb.losses import NextTokens, TargetText, ZeroShotLabel, repetition
from fuse_nb.objective import Objective, Term
from fuse_nb.ranking import AsPublished, Fuse, Ranker, calibrate, foreseeable, published_slice
from fuse_nb.slots import State, tangents
from fuse_nb.tables import Tables, spelling_table, word_table
from fuse_nb.tokens import token_strings
from test_models import V
from test_search import adapter_of, close, full_logits, made, own_cache, state_of  # noqa: F401


# --- as published (FAULTS 1.11): the definition, in the order of the published code's steps -------------------------

def as_published_by_definition(term, states, dummy):
    "The gradient of the one-hot of a dummy token, by loops: nothing here is the library's but models and losses."
    lm, target, adapter = states[0].source, term.model, term.adapter
    spell = lambda text: target.tokenizer(text, add_special_tokens=False)["input_ids"]
    special = target.tokenizer("a")["input_ids"], spell("a")
    lead = next(i for i in range(9) if special[0][i:i + len(special[1])] == special[1])
    total = torch.zeros(V)
    for s in states:
        free = s.left[s.start:] + dummy  # the free tokens and the dummy, nothing else, are translated
        bos = len(lm.bos_ids)
        given = lm.tokenizer.decode(s.left[bos:s.start])
        after = lm.tokenizer.decode(s.right) if s.right else ""
        x_B = spell(lm.tokenizer.decode(free))
        prefix = special[0][:lead] + spell(term.prefix + given)  # put before them afterwards
        ids = prefix + x_B + (spell(after + term.suffix) if after + term.suffix else []) + special[0][lead + len(special[1]):]
        leaf = target.embed([ids]).clone().requires_grad_()
        G = torch.autograd.grad(term.loss.losses(leaf).sum(), leaf)[0][0, len(prefix):len(prefix) + len(x_B)]
        counts, text = [], ""
        for v in free:  # a word ends where a token brings a blank
            piece = token_strings(lm)[v]
            if text and piece[:1].isspace(): counts.append(0); text = ""
            if not counts: counts.append(0)
            counts[-1] += 1; text += piece
        parts = []
        for l in counts:
            first = G[:l]  # every word receives the gradient of the first
            T, m = adapter.tensors[l], len(first)
            for t in range(l):  # its t-product of m and l slices, the slices of T_l transposed and not reversed
                parts.append(sum((T[:, :, (t - k + m) % l] @ first[k] for k in range(m)), torch.zeros(T.shape[0])))
        assert len(parts) == len(free)
        total += lm.embedding_table.detach() @ parts[-1]  # one one-hot, tiled over the beam
    return total


FOUND = ["", " a", " a dog", " the dog ran", " unbelievable", " horses on"]


def found_state(lm, found, prefix="two people", right="", seed=0):
    given, ids = lm.tokenize([prefix])[0], lm.tokenize([prefix + found])[0]
    assert ids[:len(given)] == given
    return State(lm, ids, full_logits(lm, ids)[-1].log_softmax(-1), torch.ones(V, dtype=torch.bool), lm.tokenizer(right, add_special_tokens=False)["input_ids"] if right else [],
                 nll=1.0, count=len(ids) - len(given), seed=seed)


def fits(state, adapter):  # is every word of the found text, with the dummy, within the adapter's classes?
    strings, n, longest = token_strings(state.source), 0, 0
    for v in state.left[state.start:] + dummy_of(state.source):
        n = 1 if strings[v][:1].isspace() else n + 1
        longest = max(longest, n)
    return longest <= max(adapter.tensors)


def dummy_of(lm): return lm.tokenizer("!", add_special_tokens=False)["input_ids"][:1]


@pytest.mark.parametrize("right", ["", " on a mat"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_as_published_is_what_the_published_code_computes(made, family, right):
    lm, target, adapter = made[family], made["pieces"], made[f"{family}-pieces"]
    term = Term(target.text("the dog ran"), 22.0, adapter, "two: ", " ride")
    states = [s for s in (found_state(lm, f, right=right) for f in FOUND) if fits(s, adapter)]
    assert len(states) >= 3
    for s in states:
        close(AsPublished().predict(term, s), as_published_by_definition(term, [s], dummy_of(lm)), 1e-3)
    summed = as_published_by_definition(term, states, dummy_of(lm))
    for row in AsPublished().predict_all(term, states): close(row, summed, 1e-3)  # one gradient for the whole beam
    objective = Objective(Term(lm, 0.3), term, Term(repetition()))
    ranked = AsPublished().rank_all(objective, states)
    for s, row in zip(states, ranked):  # score = -(gradient) + 1.0 x logits, whatever fluency weighs
        score = -22*summed + 1.0*full_logits(lm, s.left)[-1]
        assert torch.equal(row.argsort()[:50], (-score).argsort()[:50])
        shift = row + score
        close(shift, shift.mean().expand(V), 1e-2)


def test_as_published_where_the_target_has_fewer_tokens_than_the_word(made):
    "The t-product of tubes of two lengths: the published code wraps the shorter one round."
    lm, target = made["gpt2"], made["pieces"]
    adapter = adapter_of(lm, target, {l: torch.randn(32, 32, l) for l in range(1, 8)})
    term, strings = Term(target.text("the dog ran"), 22.0, adapter), token_strings(lm)
    for word in ("photo", "dog"):
        found = [strings.index(" "), *(strings.index(c) for c in word)]  # letter by letter
        s = State(lm, lm.tokenize(["two people"])[0] + found, torch.zeros(V), torch.ones(V, dtype=torch.bool), count=len(found))
        spelled = target.tokenizer(f" {word}!", add_special_tokens=False)["input_ids"]
        assert len(spelled) < len(found) + 1 and fits(s, adapter)
        close(AsPublished().predict(term, s), as_published_by_definition(term, [s], dummy_of(lm)), 1e-3)
    grad, T = torch.randn(1, 32), torch.randn(32, 32, 3)
    close(published_slice(T, grad), T[..., 0] @ grad[0])  # m = 1, l = 3: slice (l - 1 - 0 + 1) mod 3
    assert published_slice(T, grad[:0]).tolist() == [0.0]*32


def test_as_published_takes_noise_for_longer_words(made):
    lm, target = made["gpt2"], made["pieces"]
    adapter = adapter_of(lm, target, {1: torch.randn(32, 32, 1)})
    term = Term(target.text("the dog ran"), 22.0, adapter)
    s = lambda seed: found_state(lm, " a dog", seed=seed)  # " dog!" has two tokens and more
    assert torch.equal(AsPublished().predict(term, s(1)), AsPublished().predict(term, s(1)))
    assert not torch.equal(AsPublished().predict(term, s(1)), AsPublished().predict(term, s(2)))
    assert AsPublished().predict(term, s(1)).isfinite().all()


def test_the_prefix_is_not_the_first_word(made):
    "Another prefix moves the gradient only through the loss: what is translated stays the same."
    lm, target, adapter = made["gpt2"], made["pieces"], made["gpt2-pieces"]
    class Sum:
        model, label = target, "sum"
        def losses(self, embeds, mask=None): return (embeds * torch.arange(32.0)).sum((1, 2))
        def exact(self, texts): return torch.zeros(len(texts))
    term = Term(Sum(), 1.0, adapter)
    one, other = (AsPublished().predict(term, found_state(lm, " a", prefix=p)) for p in ("two people", "a"))
    close(one, other)


# --- terms about the source itself (FAULTS 1.9) -----------------------------------------------------------------------

def source_terms(lm):
    return [NextTokens(lm, "the ball"), ZeroShotLabel(lm, "good", ("good", "bad"), neutral="a mat", prefix="two: ", suffix=" the dog:"), TargetText(lm, " ran after")]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_source_terms_without_an_adapter_are_ranked_by_their_exact_gradient(made, which):
    lm = made["gpt2"]
    loss = source_terms(lm)[which]
    term, s = Term(loss), state_of(lm, "a photo of", seed=1)
    tokens = [v for v in s.expansions(60).tolist() if token_strings(lm)[v][:1] == " "][:4]  # survive in the text
    found, = tangents(term, [s], [torch.tensor(tokens)])
    for i, v in enumerate(tokens):
        ids = lm.tokenize([term.prefix + s.texts([v])[0] + term.suffix])[0]
        at = len(lm.tokenize([term.prefix + "a photo of"])[0])
        assert ids[at] == v
        x = lm.embed([ids]).clone().requires_grad_()
        value = loss.losses(x)
        close(found.losses[i], value[0].detach(), 1e-4)
        close(found.source[i], torch.autograd.grad(value.sum(), x)[0][0, at], 1e-4)
    objective = Objective(Term(lm), term)
    for name in RANKERS:
        if name == "words": continue
        assert get_ranker(name).rank(objective, s).isfinite().all(), name
    drawn = s.expansions(16)
    one, = tangents(term, [s], [drawn])
    close(Fuse().predict(term, s), calibrate(lm.embedding_table.detach() @ one.source.mean(0), drawn, one.losses), 1e-4)


def test_as_published_hands_a_source_terms_gradient_through(made):
    lm, loss = made["gpt2"], NextTokens(made["gpt2"], "the ball")
    s, term = found_state(lm, " a dog"), Term(NextTokens(made["gpt2"], "the ball"))
    ids = s.left + dummy_of(lm)
    x = lm.embed([ids]).clone().requires_grad_()
    grad, = torch.autograd.grad(loss.losses(x).sum(), x)
    close(AsPublished().predict(term, s), lm.embedding_table.detach() @ grad[0, -1], 1e-4)


@pytest.mark.parametrize("name", ["fuse", "as-published"])
def test_a_target_without_an_adapter_is_refused_by_name(made, name):
    term = Term(made["pieces"].text("the dog"))
    with pytest.raises(ValueError, match=f"'{name}' needs an adapter for the term 'the dog'"):
        get_ranker(name).rank(Objective(Term(made["gpt2"]), term), state_of(made["gpt2"], "a photo of"))


def test_a_term_of_weight_zero_costs_nothing(made):
    lm = made["gpt2"]
    class Never:
        model, label = made["pieces"], "never"
        def losses(self, embeds, mask=None): raise AssertionError("read")
        exact = losses
    never, s = Term(Never(), 0.0), state_of(lm, "a photo of")
    assert not foreseeable(never) and Combined().tries([never], [s]) == 0
    close(get_ranker("combined").rank(Objective(Term(lm), never), s), s.fluency())


# --- slots ----------------------------------------------------------------------------------------------------------------

def test_what_is_given_in_a_state(made):
    lm = made["gpt2"]
    s = state_of(lm, "a photo of a cat", chosen=2, right=" on a mat")
    assert (s.start, s.end) == (len(s.left) - 2, len(s.right))
    scored = State(lm, s.left, s.logprobs, s.allowed, nll=9.0, count=len(s.left) - 1, start=3)  # fluency over the prefix too
    assert scored.start == 3 and replace(scored, left=scored.left[:-1]).start == 3
    close(scored.fluency(), (9.0 - s.logprobs)/len(s.left))


class Reads:
    "A term that reads what was found, as lesson 51 has it."
    def __init__(self, loss, adapter, prefix="", suffix="", prefixes=None):
        self.loss, self.model, self.adapter, self.weight, self.name, self.reads = loss, loss.model, adapter, 1.0, "found", "found"
        self.prefix, self.suffix, self.seen = prefix, suffix, {}
        if prefixes: self.prefixes = prefixes
    def read_tokens(self, row, start, end): return row[start:len(row) - end]
    def remember(self, texts, losses): self.seen.update(zip(texts, losses.tolist()))
    def exact(self, texts): return self.loss.exact([self.prefix + t + self.suffix for t in texts])
    def ask(self, texts): return SimpleNamespace(lying=lambda wanted, device: self.exact(wanted).to(device))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_term_that_reads_only_what_was_found(made, family):
    lm, adapter = made[family], made[f"{family}-pieces"]
    goal, tokens = made["pieces"].text("the dog ran"), torch.tensor([token_strings(lm).index(t) for t in (" cat", " horses")])
    s = found_state(lm, " a", right=" ride")
    found, = tangents(Reads(goal, adapter, "two: "), [s], [tokens])
    alone = State(lm, lm.bos_ids + s.left[s.start:], s.logprobs, s.allowed)
    same, = tangents(Term(goal, 1.0, adapter, "two: "), [alone], [tokens])
    close(found.losses, goal.exact(["two:  a cat", "two:  a horses"]))
    for a, b in zip((found.losses, found.source, found.target), (same.losses, same.source, same.target)): close(a, b)
    known = Combined(6).slots_of(Reads(goal, adapter), [replace(s, earlier=(tuple(s.left[:-1]), [5, 6]))])[0]
    assert [k.start for k in known] == [s.start]*2
    term = Reads(goal, adapter, "two: ")
    assert set(term.seen) == set() and Combined(6).predict(term, s).isfinite().all()
    assert all(t.startswith(" a") for t in term.seen)


def test_of_several_prefixes_the_mean(made):
    goal, adapter, s = made["pieces"].text("the dog"), made["gpt2-pieces"], state_of(made["gpt2"], "a photo of")
    tokens = s.expansions(3)
    several = SimpleNamespace(loss=goal, model=goal.model, adapter=adapter, name="mean", prefix="two: ", prefixes=["two: ", "a cup "], suffix="", remember=lambda texts, losses: None)
    mean, = tangents(several, [s], [tokens])
    parts = [tangents(Term(goal, 1.0, adapter, p), [s], [tokens])[0] for p in several.prefixes]
    for field in ("losses", "source", "target"): close(getattr(mean, field), (getattr(parts[0], field) + getattr(parts[1], field))/2)


# --- the default ranker -----------------------------------------------------------------------------------------------------

def test_the_combination_equals_its_definition(made):
    "Two slots and one of the step before, from features put together by hand and weights written out in full."
    lm, target, adapter = made["gpt2"], made["pieces"], made["gpt2-pieces"]
    term, n = Term(target.text("the dog ran"), 22.0, adapter), 8
    states = [state_of(lm, "a photo of a", seed=1), state_of(lm, "a photo of the", seed=2)]
    before, told = lm.tokenize(["a photo of"])[0], [50, 60, 70, 80, 90]
    for s in states: s.earlier = (tuple(before), told)
    ranker = Combined(2*n)
    said = ranker.predict_all(term, states)
    assert ranker.tries([term], states) == n
    strings, ok = token_strings(lm), states[0].allowed
    begins = torch.tensor([s[:1].isspace() for s in strings])
    b, words = begins.double(), word_table(lm, target).double()
    standard = lambda x: (x - x[ok].mean())/x[ok].std()
    z = standard(target.text("the dog ran").from_features(words.float()).double())
    drawn = [s.expansions(n) for s in states]
    m = -(-16*n//(2*n*2))  # gradients for so many words in each slot
    found = tangents(Term(target.text("the dog ran"), 22.0, adapter), states, [d[:m] for d in drawn])
    slope = lambda table, name: 0.5*standard((table @ torch.cat([getattr(f, name) for f in found]).mean(0)).double())
    t, a = slope(spelling_table(lm, target), "target"), slope(lm.embedding_table.detach(), "source")
    rows = words.clone()
    for kind in (begins, ~begins): rows[kind] -= words[kind & ok].mean(0)
    X = torch.cat([torch.stack([b, z*b, 0.5*z*(1 - b), t*b, t*(1 - b), a], 1), F.normalize(rows, dim=1)], 1)
    tokens = [*drawn, torch.tensor(told)]
    texts = [lm.tokenizer.decode(left + [v]) for left, some in zip([s.left for s in states] + [before], tokens) for v in some.tolist()]
    losses = target.text("the dog ran").exact(texts).double().split([len(t) for t in tokens])
    slot, spread = torch.tensor([i for i, t in enumerate(tokens) for _ in t]), torch.stack([y.std() for y in losses]).mean()
    y = torch.cat([v - v.mean() for v in losses])/spread
    A, best = X[torch.cat(tokens)], None
    for memory in (0.0, 0.5, 1.0):
        R = torch.tensor([[1, 0.7, 0.7*memory], [0.7, 1, 0.7*memory], [0.7*memory, 0.7*memory, 1]]).double()
        C = (A @ A.T)*R[slot][:, slot] + 4*(slot[:, None] == slot) + 0.2*torch.eye(len(y))
        density = torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), C).log_prob(y).item()
        if best is None or density > best[0]: best = density, R, torch.linalg.solve(C, y)
    _, R, alpha = best
    for j in range(2):
        want = losses[j].mean() + spread*(X @ (A.T @ (alpha*R[slot, j])) + 4*alpha[slot == j].sum())
        close(said[j], want.float(), 2e-3)


def test_rank_is_in_the_objectives_unit_for_every_ranker(made):
    "Fluency exactly, each term times its weight; penalties left out."
    lm, s = made["gpt2"], state_of(made["gpt2"], "a photo of", chosen=1, seed=4)
    term = lambda w: Term(made["pieces"].text("the dog ran"), w, made["gpt2-pieces"])
    for name in set(RANKERS) - {"random", "as-published"}:
        ranker = get_ranker(name)
        close(ranker.rank(Objective(Term(lm, 0.3), term(20.0), Term(repetition())), s), 0.3*s.fluency() + 20*ranker.predict(term(20.0), s), 1e-3)


# --- a user's own ranker ------------------------------------------------------------------------------------------------------

def test_what_a_users_ranker_returns_is_checked(made):
    lm = made["gpt2"]
    objective, s = Objective(Term(lm), Term(made["pieces"].text("a dog"))), state_of(made["gpt2"], "a photo of")
    class Own:
        def __init__(self, answer): self.answer = answer
        def rank(self, objective, state): return self.answer
    good = torch.linspace(0, 1, V).double()
    good[5] = float("inf")
    ranked = get_ranker(Own(good)).rank_all(objective, [s, s])
    assert ranked.shape == (2, V) and ranked.dtype == torch.float32 and ranked[0, 5] == float("inf")
    assert get_ranker(Own(good)).tries(objective.terms, [s]) == 0
    for bad, kind, told in ((torch.zeros(3), ValueError, r"\(3,\)"), (torch.zeros(1, V), ValueError, "shape"), (good*float("nan"), ValueError, "NaN"),
                            (good.tolist(), TypeError, "list"), (good.long(), TypeError, "floating"), (None, TypeError, "None")):
        with pytest.raises(kind, match=f"what Own returns.*{told}"): get_ranker(Own(bad)).rank(objective, s)
    class Wrong(Ranker):
        def predict(self, term, state): return torch.zeros(7)
    with pytest.raises(ValueError, match=r"what Wrong returns.*\(1, 7\)"): Wrong().rank(objective, s)
    class Overrides(Ranker):
        def rank(self, objective, state): return torch.zeros(2)
    with pytest.raises(ValueError, match="what Overrides returns"): get_ranker(Overrides()).rank_all(objective, [s])
    with pytest.raises(TypeError, match="the class Combined.*an object of it"): get_ranker(Combined)
    mine = Fuse(3)
    assert get_ranker(mine) is mine


def test_a_rankers_own_errors_are_raised(made):
    class Fails(Ranker):
        def predict(self, term, state): raise ValueError("my own")
    class Own:
        def rank(self, objective, state): raise KeyError("mine")
        def tries(self, terms, states): return 3
    objective, s = Objective(Term(made["gpt2"]), Term(made["pieces"].text("a dog"))), state_of(made["gpt2"], "a photo of")
    with pytest.raises(ValueError, match="my own"): get_ranker(Fails()).rank(objective, s)
    with pytest.raises(KeyError, match="mine"): get_ranker(Own()).rank(objective, s)
    assert get_ranker(Own()).tries(objective.terms, [s]) == 3


# --- devices --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", list(RANKERS))
def test_a_ranker_computes_where_the_model_is(made, name):
    "On a device without float64, and with nothing mixed: the same numbers as here."
    lm, target, adapter = made["gpt2"], made["pieces"], made["gpt2-pieces"]
    def ranked(lm, target, tensors, device):
        objective = Objective(Term(lm, 0.3), Term(target.text("the dog ran"), 22.0, adapter_of(lm, target, tensors)))
        states = [replace(s, source=lm, logprobs=s.logprobs.to(device)) for s in here]
        return get_ranker(name).rank_all(objective, states)
    here = [state_of(lm, t, 1, seed=k, earlier=((1, 2), [50, 60, 70])) for k, t in enumerate(("a photo of a", "a photo of the"))]
    wanted = ranked(lm, target, adapter.tensors, "cpu")
    def there(model, device):
        new = copy.copy(model)
        vars(new).pop("embedding_table", None)
        new.model, new.device = copy.deepcopy(model.model).to(device), device
        return new
    swap = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        device = DEVICE
        with Machine(double=False):
            found = ranked(there(lm, device), there(target, device), {l: T.to(device) for l, T in adapter.tensors.items()}, device)
            assert found.device.type == "pretend"
            found = found.cpu()
    finally: torch.__future__.set_overwrite_module_params_on_conversion(swap)
    close(found, wanted, 1e-3)


# --- tables --------------------------------------------------------------------------------------------------------------------

def test_tables_live_with_the_ranker_and_nowhere_else(made, monkeypatch):
    lm, target = made["gpt2"], made["pieces"]
    token_strings(lm), lm.fingerprint, target.fingerprint, lm.max_length, target.max_length  # what the models keep themselves
    term, s = Term(target.text("the dog"), 1.0, made["gpt2-pieces"]), state_of(lm, "a photo of")
    before = [set(vars(x)) for x in (lm, target, term, term.loss)]
    ranker = Combined()
    ranker.predict(term, s)
    assert [set(vars(x)) for x in (lm, target, term, term.loss)] == before
    with monkeypatch.context() as m:
        for name in ("cached", "spelling_table", "word_table"): m.setattr(tables_room, name, lambda *a, **k: pytest.fail("made again"))
        ranker.predict(Term(target.text("a cup"), 1.0, made["gpt2-pieces"]), s)  # another goal, the same tables
        with pytest.raises(pytest.fail.Exception): Combined().predict(term, s)


def test_a_ranker_forgets_the_terms_that_are_gone(made):
    import gc
    ranker, s = Combined(4), state_of(made["gpt2"], "a photo of")
    for word in ("a dog", "a cat", "a cup"): ranker.predict(Term(made["pieces"].text(word)), s)
    gc.collect()
    assert len(ranker._alone) == 0


class Slow:
    "A target whose time is what the test says."
    def __init__(self, target, clock, seconds): self.target, self.clock, self.seconds, self.read = target, clock, seconds, []
    def __getattr__(self, name): return getattr(self.target, name)
    def encode(self, texts, batch_size=64):
        self.read += texts
        self.clock[0] += self.seconds*len(texts)
        return self.target.encode(texts)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tables_room.time, "perf_counter", lambda: now[0])
    return now


def test_a_word_table_that_would_take_too_long_is_not_made(made, clock, caplog):
    lm, slow = made["gpt2"], Slow(made["pieces"], clock, 10.0)
    with caplog.at_level(logging.INFO, logger="fuse_nb"):
        assert word_table(lm, slow, batch_size=32, limit=60.0) is None
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1 and "minutes" in told[0] and "pieces" in told[0] and "going on without" in told[0]
    estimates = [r.getMessage() for r in caplog.records if "about" in r.getMessage() and r.levelno == logging.INFO]
    assert len(estimates) == 1 and len(slow.read) == 1 + 32//8  # one to warm up, a few to time
    texts = set(tuple(made["pieces"].tokenize([("An image of a" if t[:1].isspace() else "") + (t if t[:1].isspace() else t.strip())])[0]) for t in token_strings(lm))
    assert f"{len(texts)} texts, about {10*len(texts)} s" in estimates[0]
    fast = Slow(made["pieces"], clock, 0.001)
    table = word_table(lm, fast, batch_size=32, limit=60.0)
    close(table, word_table(lm, made["pieces"]), 1e-5)
    again = Slow(made["pieces"], clock, 10.0)
    close(word_table(lm, again, limit=60.0), table)  # it is there: no time at all
    assert len(again.read) == 1


def test_a_word_table_is_made_in_halves_where_the_memory_is_short(made, clock):
    sizes = []
    class Small(Slow):
        def encode(self, texts, batch_size=64):
            sizes.append(len(texts))
            if len(texts) > 7: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return self.target.encode(texts)
    lm = made["gpt2"]
    table = word_table(lm, Small(made["pieces"], clock, 0.0), batch_size=32)
    assert max(sizes) == 32 and sizes.count(4) > 1
    framed = [("An image of a" if t[:1].isspace() else "") + (t if t[:1].isspace() else t.strip()) for t in token_strings(lm)]
    close(table, made["pieces"].encode(framed), 1e-3)


@pytest.mark.parametrize("few, small, limit, is_made", [(320, 10**6, 60.0, True), (320, 10**6, 0, False), (319, 10**6, 60.0, False), (320, 10, 60.0, False), (0, 0, None, True), (0, 0, 10**6, True)])
def test_a_small_table_does_not_depend_on_the_clock(made, clock, monkeypatch, caplog, few, small, limit, is_made):
    "However slow the machine: a small target's table is made, a large one's is a matter of the estimate."
    monkeypatch.setattr(tables_room, "FEW_TEXTS", few)
    monkeypatch.setattr(tables_room, "SMALL_MODEL", small)
    lm, slow = made["gpt2"], Slow(made["pieces"], clock, 100.0)
    assert len(lm.embedding_table) == 320 and 10 < sum(p.numel() for p in slow.model.parameters()) < 10**6
    goal = made["pieces"].text("the dog ran")
    with caplog.at_level(logging.INFO, logger="fuse_nb"):
        ranker = Combined(6) if limit == 60.0 else Combined(6, limit=limit)
        alone = ranker.alone(Term(type(goal)(slow, goal.features, goal.label)), state_of(lm, "a photo of"))
    assert (alone is not None) is is_made
    assert ("going on without" in caplog.text) is not is_made and caplog.text.count("texts, about") == 1  # one line says how long


def test_the_default_ranker_goes_on_without_a_table(made, clock, caplog, monkeypatch):
    monkeypatch.setattr(tables_room, "SMALL_MODEL", 0)
    lm, slow = made["gpt2"], Slow(made["pieces"], clock, 100.0)
    goal = made["pieces"].text("the dog ran")
    goal = type(goal)(slow, goal.features, goal.label)
    term, states = Term(goal), [state_of(lm, "a photo of", seed=1), state_of(lm, "two people", seed=2)]
    ranker = Combined(6)
    first = ranker.predict_all(term, states)
    assert first.isfinite().all() and ranker.tries([term], states) == 6  # nothing carries over what other slots know
    read = len(slow.read)
    close(ranker.predict_all(term, states), first)
    assert len(slow.read) == read and caplog.text.count("going on without") == 1  # timed and said once
    no_table = Combined(6)
    no_table._alone[term] = None
    close(no_table.predict_all(term, states), first)
    asked = Combined(6, limit=None)
    assert not torch.allclose(asked.predict_all(term, states), first) and asked.tries([term], states) == 3


def test_a_token_is_spelled_as_it_stands_inside_a_text(made):
    "To a byte-level tokenizer ' cat' is not 'cat'."
    lm, twin = made["gpt2"], made["twin"]  # the same tokens and vectors
    table, strings = spelling_table(lm, twin), token_strings(lm)
    assert twin.tokenizer(" cat", add_special_tokens=False)["input_ids"] != twin.tokenizer("cat", add_special_tokens=False)["input_ids"]
    for word in (" cat", " horses", " the"):
        v = strings.index(word)
        close(table[v], twin.embedding_table[v])


def test_a_wrong_frame_or_limit_is_refused(made):
    with pytest.raises(TypeError, match="frame must be a text"): Tables(3)
    with pytest.raises(ValueError, match="limit must be"): Tables(limit=-1.0)
    with pytest.raises(TypeError, match="limit must be a number"): Combined(limit="a minute")
    with pytest.raises(ValueError, match="batch_size must be"): word_table(made["gpt2"], made["pieces"], batch_size=0)
    for bad, told in ((dict(n=1), "n must be"), (dict(noise=0.0), "noise must be"), (dict(share=1.5), "share must be"), (dict(memory=(2.0,)), "memory must be")):
        with pytest.raises(ValueError, match=told): Combined(**bad)
    with pytest.raises(TypeError, match="n must be a whole number"): Fuse(1.5)


def test_the_seed_of_a_slot_is_0_where_none_is_given(made):
    lm = made["gpt2"]
    given = lm, lm.tokenize(["a photo"])[0], torch.zeros(len(lm.embedding_table)).log_softmax(-1), torch.ones(len(lm.embedding_table), dtype=torch.bool)
    orders = [State(*given, **seed).expansions(40).tolist() for seed in ({}, dict(seed=0), dict(seed=1))]
    assert orders[0] == orders[1] != orders[2]


def test_a_term_without_a_word_table_borrows_the_first_there_is(made):
    lm = made["gpt2"]
    picture, mood = Term(made["pieces"].text("the dog"), 1.0, made["gpt2-pieces"]), Term(NextTokens(lm, "the ball"), 1.0)
    other = Term(made["pieces"].text("a cup"), 1.0, made["gpt2-pieces"], name="other")
    ranker, states = Combined(6), [replace(state_of(lm, "a photo of"), seed=seed) for seed in (0, 1)]
    assert ranker.lender(mood, [Term(lm), mood, picture, other], states[0]) is picture
    assert ranker.lender(picture, [picture, other], states[0]) is None                     # it has its own
    assert ranker.lender(mood, [Term(lm), mood, Term(picture.loss, 0.0, name="silent")], states[0]) is None
    assert ranker.tries([mood], states) == 6 and ranker.tries([picture, mood], states) == 3
    tokens = [s.expansions(3) for s in states]
    assert ranker.features(mood, states, tokens)[1] is None
    assert torch.equal(ranker.features(mood, states, tokens, picture)[1], ranker.features(picture, states, tokens)[1])
    lent, own = ranker.predict_beside(mood, [picture, mood], states), ranker.predict_beside(mood, [mood], states)
    close(lent, ranker.predict_all(mood, states, picture))
    close(own, ranker.predict_all(mood, states))
    assert not torch.allclose(lent, own)
    objective = Objective(Term(lm, 0.5), picture, mood)
    want = sum(t.weight * ranker.predict_beside(t, objective.terms, states) for t in (picture, mood)) + 0.5 * torch.stack([s.fluency() for s in states])
    close(ranker.rank_all(objective, states), want)
