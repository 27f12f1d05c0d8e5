"GCG's estimate against every swap, untied models, the buffer, the early stop, what the gradient does not see; AutoDAN's fluency over the whole text."
import pytest
import torch
import torch.nn.functional as F

import fuse_nb.swaps as swaps_room
from fuse_nb.autodan import AutoDAN
from fuse_nb.causal import CausalLM
from fuse_nb.losses import Fluency, TargetText, length
from fuse_nb.objective import Objective, Term, token_gradient
from fuse_nb.search import Ledger
from fuse_nb.result import Result
from fuse_nb.swaps import GCG, PEZ, RandomSearch, is_greedy
from test_models import V, byte_bpe, causal
from test_optimizer import PREFIX, objective_of
from test_search import close, full_logits, made, own_cache, source_of  # noqa: F401 (fixtures)


@pytest.fixture(scope="module")
def untied():
    torch.manual_seed(0)
    model = causal("llama")
    with torch.no_grad(): model.get_input_embeddings().weight.normal_(0, 0.3)
    return CausalLM("untied", model, byte_bpe("<bos> $A"), "cpu")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "untied"])
@pytest.mark.parametrize("scope", ["found", "text"])
@pytest.mark.parametrize("start, end", [(1, 0), (3, 0), (2, 2)])
def test_what_gcg_reads_of_fluency_is_the_derivative_at_one_hot_tokens(made, untied, family, scope, start, end):  # noqa: F811
    lm = untied if family == "untied" else made[family]
    row = lm.tokenize(["a cat on a mat"])[0]
    first = start if scope == "found" else 1
    onehot = F.one_hot(torch.tensor(row), V).float().requires_grad_()
    logp = lm.logits((onehot @ lm.embedding_table.detach())[None])[0, first - 1:-1].float().log_softmax(-1)
    want, = torch.autograd.grad(-(onehot[first:]*logp).sum(1).mean(), onehot)
    _, slopes = token_gradient(Objective(Term(Fluency(lm, scope=scope))), [row], start, end)
    close(slopes[0], want[start:len(row) - end], 1e-4)
    books = Ledger(GCG(), Objective(Term(Fluency(lm, scope=scope))), PREFIX)
    allowed, now = torch.ones(V, dtype=torch.bool), row[start:]
    books.left, books.start = row[:start], start
    lists = GCG(topk=5).walk(books, allowed, now).__self__.lists()
    close(want[start:].gather(1, lists), want[start:].topk(5, largest=False).values, 1e-4)


def test_gcg_with_fluency_of_an_untied_model(untied):
    assert untied.model.get_output_embeddings().weight.data_ptr() != untied.embedding_table.data_ptr()
    search = lambda kind, o: kind(steps=15, candidates=24, length=6, progress=False, **({"topk": 16} if kind is GCG else {})).minimize(o(), PREFIX, seed=1)
    alone, both = lambda: Objective(Term(untied)), lambda: Objective(Term(untied), Term(TargetText(untied, " ran"), 0.5))
    for o in (alone, both):
        r = search(GCG, o)
        assert r.stopped == "steps" and r.loss < search(RandomSearch, o).loss and r.loss == pytest.approx(o()([r.ids], 5)[0][0], abs=1e-4)
    with pytest.raises(ValueError, match="untied does not tie"): PEZ(steps=1, length=4, progress=False).minimize(alone(), PREFIX)


def test_terms_without_a_gradient_are_named(made):  # noqa: F811
    lm = made["gpt2"]
    o = lambda: Objective(Term(TargetText(lm, " ran")), Term(length(4), 0.1), Term(made["pieces"].text("a dog"), 2.0, name="forgotten"), source=lm)
    for kind in (GCG, PEZ):
        with pytest.warns(UserWarning) as said: kind(steps=2, length=4, progress=False).minimize(o(), PREFIX)
        told = [str(w.message) for w in said]
        assert len(told) == 1 and all(f"{n!r} adds nothing to the gradient" in told[0] for n in ("length", "forgotten")) and "adapter=FuseAdapter" in told[0]
        assert said[0].filename == __file__  # at the caller's line


def test_a_buffer_never_goes_uphill_from_its_best(made):  # noqa: F811
    lm = made["gpt2"]
    o = lambda: Objective(Term(TargetText(lm, " ran after the ball")), source=lm)
    search = lambda steps=10, resume=None, **more: GCG(**{**dict(steps=steps, length=5, candidates=4, progress=False), **more}).minimize(o(), PREFIX, seed=3, resume=resume)
    r, free = search(buffer=3), search()
    value = lambda ids: TargetText(lm, " ran after the ball").exact_ids([lm.tokenize([PREFIX])[0] + ids]).item()
    at = [value(t["frontier"]) for t in r.trace]
    assert at == sorted(at, reverse=True)
    at = [value(t["frontier"]) for t in free.trace]
    assert at != sorted(at, reverse=True)  # without one it does go uphill
    assert len(r.trace[-1]["pool"]) == 3 and all("pool" not in t for t in r.trace[:-1])
    part = Result.from_json(search(4, buffer=3).to_json())
    rest = search(10, part, buffer=3)
    assert (rest.ids, [t["frontier"] for t in rest.trace]) == (r.ids, [t["frontier"] for t in r.trace])


def test_early_stop_when_the_target_is_what_the_model_says(made):  # noqa: F811
    lm = made["gpt2"]
    left = lm.tokenize([PREFIX])[0]
    prompt = left + lm.tokenizer(" cat on", add_special_tokens=False)["input_ids"]
    says = full_logits(lm, prompt)[-1].argmax().item()  # greedy decoding by hand, two tokens
    then = full_logits(lm, prompt + [says])[-1].argmax().item()
    target = TargetText(lm, "x")
    target.ids = [says, then]
    o = lambda: Objective(Term(target), source=lm)
    r = GCG(steps=200, early_stop=True, candidates=8, progress=False).minimize(o(), PREFIX, init=" cat on")
    assert r.stopped == "target reached" and len(r.trace) < 200
    again = []
    for _ in range(2): again.append(full_logits(lm, r.ids + again)[-1].argmax().item())
    assert again == target.ids
    assert GCG(steps=3, candidates=8, progress=False).minimize(o(), PREFIX, init=" cat on").stopped == "steps"  # off by default
    with pytest.raises(ValueError, match="early_stop needs a TargetText"): GCG(early_stop=True).minimize(objective_of(made), PREFIX)


def test_the_table_is_normalized_once(made, monkeypatch):  # noqa: F811
    sizes, real = [], F.normalize
    monkeypatch.setattr(swaps_room.F, "normalize", lambda x, **k: sizes.append(len(x)) or real(x, **k))
    RandomSearch(steps=3, candidates=16, length=4, ball="l2", radius=20, progress=False).minimize(objective_of(made), PREFIX)
    PEZ(steps=5, length=4, progress=False).minimize(objective_of(made), PREFIX)
    assert sum(n > 4 for n in sizes) == 2 and len(sizes) > 20


def test_fluency_over_the_whole_text(made):  # noqa: F811
    lm = made["gpt2"]
    o = lambda: Objective(Term(Fluency(lm, scope="text")), Term(made["pieces"].text("a dog"), 2.0))
    for ranker in ("lm", "combined"):
        for suffix in ("", " on a mat"):
            r = AutoDAN(steps=3, beam=2, candidates=8, ranker=ranker, progress=False).minimize(o(), PREFIX, suffix)
            assert r.loss == pytest.approx(o()([r.ids], 4)[0][0], abs=1e-4)
            if not suffix: assert r.terms["fluency"] == pytest.approx(lm.nll([r.ids], prefix_len=1, mean=True).item(), abs=1e-4)


def test_early_stop_reads_what_the_term_reads(made):  # noqa: F811
    "A target text of a second model, in a template, with several prefixes, or about the found tokens only."
    lm, other = made["gpt2"], made["llama"]
    left, row = lm.tokenize([PREFIX])[0], lm.tokenize([PREFIX + " cat on"])[0]
    def says(model, ids, n=2):
        said = []
        for _ in range(n): said.append(full_logits(model, ids + said)[-1].argmax().item())
        return said
    def target(model, ids):
        t = TargetText(model, "x")
        t.ids = ids
        return t
    text = lm.tokenizer.decode(row)
    for model, prompt, made_of in ((other, text, {}), (lm, "Say: " + text + "!", dict(prefix="Say: ", suffix="!")), (lm, " cat on", dict(reads="found"))):
        said = says(model, model.tokenize([prompt])[0])
        for ids, want in ((said, True), ([said[0], (said[1] + 1) % V], False)):
            term = Term(target(model, ids), **made_of)
            assert is_greedy(Objective(term, source=lm), term, row, len(left)) is want
    prompts = ["One: ", "Two: "]
    answers = [says(lm, lm.tokenize([p + text])[0]) for p in prompts]
    term = Term(target(lm, answers[0]), prefix=prompts)
    assert is_greedy(Objective(term, source=lm), term, row, len(left)) is (answers[0] == answers[1])
