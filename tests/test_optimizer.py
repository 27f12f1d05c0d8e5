"The optimizers on objectives whose best text is known: found within a budget, once each, again after an interruption, with what can go wrong."
import json
import math
import time

import pytest
import torch

from fuse_nb.losses import Penalty, TargetText, length
from fuse_nb.objective import Objective, Term
from fuse_nb.search import Result, evaluate
from fuse_nb.autodan import AutoDAN
from fuse_nb.swaps import GCG, PEZ, RandomSearch
from fuse_nb.tokens import allowed_tokens
from fuse_nb.ranking import Ranker
from test_models import V, byte_bpe
from test_search import SENTENCE, Spelled, adapter_of, bert, close, made, own_cache, source_of  # noqa: F401 (fixtures)

PREFIX = "a photo of"


class Watch:
    "A loss of the source's tokens, always 0, that keeps what it is shown."
    label = "watch"
    def __init__(self, lm): self.lm = self.model = lm; self.rows = []
    def exact_ids(self, seqs, start=1): self.rows += [[list(s) for s in seqs]]; return torch.zeros(len(seqs))


class Slope(Watch):
    def losses(self, embeds): return 0*embeds.sum((1, 2))


def objective_of(made, text=SENTENCE, watch=None):
    lm = made["gpt2"]
    return Objective(Term(lm, 1e-3), Term(Spelled(made["twin"], text), adapter=made["same"]), *([Term(watch(lm))] if watch else []), source=lm)


START = " o p c b r"  # five tokens, as the sentence has after the prefix
AUTO = dict(steps=5, beam=3, candidates=16)
KINDS = {
    "greedy": (lambda **o: AutoDAN(**{**AUTO, "strategy": "greedy", **o}), {}),
    "beam": (lambda **o: AutoDAN(**{**AUTO, **o}), {}),
    "beam-fuse": (lambda **o: AutoDAN(**{**AUTO, "ranker": "fuse", **o}), {}),
    "uniform-cost": (lambda **o: AutoDAN(**{**AUTO, "steps": 7, "strategy": "uniform-cost", **o}), {}),
    "gcg": (lambda **o: GCG(**{**dict(steps=8, candidates=32, topk=4), **o}), dict(init=START)),
    "pez": (lambda **o: PEZ(**{**dict(steps=20), **o}), dict(init=START)),
    "random-l0": (lambda **o: RandomSearch(**{**dict(steps=40, candidates=64), **o}), dict(init=START)),
    "random-l2": (lambda **o: RandomSearch(**{**dict(steps=25, candidates=128, ball="l2", radius=20), **o}), dict(init=START)),
}
BUDGET = dict(greedy=5*32, beam=15*32, **{"beam-fuse": 15*32, "uniform-cost": 21*32}, gcg=8*32 + 1, pez=21, **{"random-l0": 40*64 + 1, "random-l2": 25*128 + 1})
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def search(made, kind, objective=None, seed=0, resume=None, prefix=PREFIX, suffix="", **options):
    make, given = KINDS[kind]
    if resume is not None: given = dict(given, resume=resume)
    return make(progress=False, **options).minimize(objective or objective_of(made), prefix, suffix, seed, **given)


def same_result(a, b, counts=True):
    steps = lambda r: [{k: v for k, v in t.items() if k in ("step", "text", "dropped") or counts and k == "evaluations"} for t in r.trace]
    assert (a.text, a.ids, a.dropped, a.stopped) == (b.text, b.ids, b.dropped, b.stopped) and steps(a) == steps(b)
    assert a.evaluations == b.evaluations if counts else a.evaluations >= b.evaluations
    assert a.loss == pytest.approx(b.loss, abs=1e-5) and a.terms == pytest.approx(b.terms, abs=1e-5)


@every_kind
def test_a_known_sentence_is_found(made, kind):
    r = search(made, kind)
    assert r.text == SENTENCE and r.terms["spelled"] < 1e-5 and r.evaluations <= BUDGET[kind]
    assert r.ids == made["gpt2"].tokenize([SENTENCE])[0]
    total, terms = objective_of(made)([r.ids], 4)[0]  # read again, without a cache
    assert r.loss == pytest.approx(total, abs=1e-5) and r.terms == pytest.approx(terms, abs=1e-4)
    losses = [t["loss"] for t in r.trace]
    assert losses == sorted(losses, reverse=True) and losses[-1] == r.loss and [t["step"] for t in r.trace] == [*range(1, len(losses) + 1)]


@every_kind
def test_candidates_survive_and_texts_are_evaluated_once(made, kind):
    lm, objective = made["gpt2"], objective_of(made, watch=Slope if kind in ("gcg", "pez") else Watch)
    r = search(made, kind, objective, seed=1, steps=6)
    spelled, watch = objective.terms[1].loss, objective.terms[2].loss
    texts, rows = [t for call in spelled.seen for t in call], [row for call in watch.rows for row in call]
    assert len(texts) == len(set(texts)) and texts
    for call in watch.rows: assert len(call) == len(set(map(tuple, call)))
    assert lm.tokenizer(objective.texts(rows))["input_ids"] == rows and all(row[:4] == lm.tokenize([PREFIX])[0] for row in rows)
    assert r.evaluations == len(rows) and (allowed := allowed_tokens(lm))[[v for row in rows for v in row[4:]]].all() and not allowed[:4].any()


def test_what_does_not_survive_is_dropped_and_counted(made):
    lm, objective = made["gpt2"], objective_of(made)
    left = lm.tokenize(["a photo o"])[0]  # "f" would make another token of the "o"
    rows = [left + [v] for v in allowed_tokens(lm).nonzero()[:, 0].tolist()]
    good = [r for r in rows if lm.tokenizer(lm.tokenizer.decode(r))["input_ids"] == r]
    r = AutoDAN(steps=1, beam=1, candidates=V, ranker="lm", progress=False).minimize(objective, "a photo o")
    assert (r.evaluations, r.dropped) == (len(good), len(rows) - len(good)) and 0 < r.dropped == r.trace[0]["dropped"]
    assert sorted(objective.terms[1].loss.seen[0]) == sorted(lm.tokenizer.batch_decode(good))


@pytest.mark.parametrize("kind", ["gcg", "pez", "random-l0"])
def test_a_random_start_survives_too(made, kind):
    lm = made["gpt2"]
    for seed in range(20):  # of 20 tokens drawn freely, one text in seven does not survive
        objective = objective_of(made, watch=Slope)
        KINDS[kind][0](steps=1, length=20, progress=False, **({} if kind == "pez" else dict(candidates=1))).minimize(objective, PREFIX, "", seed)
        first = objective.terms[2].loss.rows[0][0]
        assert lm.tokenizer(objective.texts([first]))["input_ids"] == [first] and len(first) == 24


@pytest.mark.parametrize("kind", ["gcg", "pez", "random-l0"])
def test_a_text_of_an_earlier_step_is_not_read_again(made, kind):
    objective = objective_of(made, watch=Slope)
    r = search(made, kind, objective)
    rows = [tuple(row) for call in objective.terms[2].loss.rows for row in call]
    assert len(rows) == len(set(rows)) == r.evaluations


@every_kind
def test_a_seed_fixes_everything(made, kind):
    objectives = [objective_of(made) for _ in range(3)]
    a, b, _ = (search(made, kind, o, seed=seed, steps=3) for o, seed in zip(objectives, (2, 2, 3)))
    same_result(a, b)
    first, again, other = (o.terms[1].loss.seen for o in objectives)
    assert first == again and (first != other or kind == "pez")  # PEZ draws nothing but its start


@every_kind
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_result(made, kind, after, tmp_path):
    if kind == "pez": pytest.skip("a continued PEZ starts its optimizer afresh, as it says")
    def stop(row):
        if row["step"] == after: raise KeyboardInterrupt
    whole = search(made, kind, seed=4, steps=6)
    part = search(made, kind, seed=4, steps=6, callback=stop)
    assert part.stopped == "interrupted" and len(part.trace) == after and part.loss == part.trace[-1]["loss"]
    part.to_json(tmp_path/"run.json")
    kept = Result.from_json(tmp_path/"run.json")
    assert kept == part == Result.from_json(part.to_json()) and [p.name for p in tmp_path.glob("run*")] == ["run.json"]
    rest = search(made, kind, seed=4, steps=6, resume=kept)
    same_result(rest, whole, counts=not kind.startswith("random"))  # a continued run has forgotten which texts it has read: random neighbours may come again
    assert rest.seconds > part.seconds


def test_uniform_cost_returns_to_an_older_text_after_an_interruption(made):
    "The first step's second best text is expanded only in step 2 or later; a continued run must still know it."
    def stop(row):
        if row["step"] == 2: raise KeyboardInterrupt
    options = dict(steps=8, beam=1, candidates=6, ranker="lm", seed=0)
    mislead = lambda: Objective(Term(Penalty("maze", lambda t: len(t) % 7 + 0.1*(sum(map(ord, t)) % 10))), source=made["gpt2"])
    whole = search(made, "uniform-cost", mislead(), **options)
    assert any(len(b["frontier"][0]["ids"]) <= len(a["frontier"][0]["ids"]) for a, b in zip(whole.trace[2:], whole.trace[3:]))  # it did go back
    nodes = [n for t in whole.trace for n in t["frontier"] + t.get("open", [])]
    close(torch.tensor([n["nll"] for n in nodes]), made["gpt2"].nll([n["ids"] for n in nodes], prefix_len=4), 1e-4)
    part = search(made, "uniform-cost", mislead(), callback=stop, **options)
    kept = Result.from_json(part.to_json())
    rest = search(made, "uniform-cost", mislead(), resume=kept, **options)
    same_result(rest, whole)
    assert [[n["ids"] for n in t["frontier"]] for t in rest.trace] == [[n["ids"] for n in t["frontier"]] for t in whole.trace]


def test_a_run_is_not_continued_as_another(made):
    first = search(made, "beam", steps=1)
    other = Objective(Term(made["gpt2"], 1e-3), Term(Spelled(made["twin"], SENTENCE), 2.0, adapter=made["same"]), source=made["gpt2"])
    for given, said in (dict(prefix="a picture of"), "prefix"), (dict(suffix=" mat"), "suffix"), (dict(objective=other), "objective"):
        with pytest.raises(ValueError, match=f"resume: that run had the {said}"): search(made, "beam", steps=2, resume=first, **given)
    assert len(search(made, "beam", steps=2, resume=first).trace) == 2


def test_a_continued_run_leaves_what_it_continues_as_it_is(made):
    first = search(made, "uniform-cost", steps=2)
    text = first.to_json()
    search(made, "uniform-cost", steps=4, resume=first)
    assert first.to_json() == text


@pytest.mark.parametrize("kind", ["beam", "gcg", "random-l0", "pez"])
def test_reasons_to_stop_and_the_callback(made, kind):
    rows = []
    r = search(made, kind, steps=4, callback=rows.append)
    assert rows == r.trace and len(rows) == 4 and r.stopped == "steps"
    assert {"step", "loss", "terms", "text", "evaluations", "dropped", "seconds", "frontier"} <= set(rows[0])
    assert [t["seconds"] for t in rows] == sorted(t["seconds"] for t in rows) and rows[-1]["evaluations"] == r.evaluations
    assert r.settings["steps"] == 4 and r.settings["seed"] == 0 and json.loads(r.to_json())["text"] == r.text == str(r)
    r = search(made, kind, steps=50, max_seconds=1e-6)
    assert r.stopped == "time" and len(r.trace) == 1
    r = search(made, kind, steps=50, max_evaluations=3)
    assert r.stopped == "evaluations" and r.trace[-1]["evaluations"] >= 3 and all(t["evaluations"] < 3 for t in r.trace[:-1])
    flat = Objective(Term(Spelled(made["twin"], SENTENCE), 0.0, adapter=made["same"]), source=made["gpt2"])
    r = search(made, kind, flat, steps=50, patience=3)
    assert r.stopped == "patience" and len(r.trace) == 4


def test_optimizer_errors(made):
    o, lm = objective_of(made), made["gpt2"]
    with pytest.raises(ValueError, match="greedy, beam, uniform-cost"): AutoDAN(strategy="best").minimize(o, PREFIX)
    with pytest.raises(ValueError, match="there is no ranker 'best'.*combined"): AutoDAN(ranker="best").minimize(o, PREFIX)
    with pytest.raises(ValueError, match="prefix is empty"): AutoDAN().minimize(o, "")
    with pytest.raises(ValueError, match="end must be one token"): AutoDAN(end=" unbelievable").minimize(o, PREFIX)
    with pytest.raises(ValueError, match="'l0' or 'l2'"): RandomSearch(ball="l1").minimize(o, PREFIX)
    for bad in (dict(steps=0), dict(beam=0), dict(candidates=2.5), dict(max_seconds=0), dict(patience=True)):
        with pytest.raises(ValueError, match=next(iter(bad))): AutoDAN(**bad)
    with pytest.raises(ValueError, match="no term of the objective has a gradient"): GCG().minimize(Objective(Term(length(3)), source=lm), PREFIX)


@pytest.mark.parametrize("kind", ["beam", "uniform-cost", "gcg", "random-l0"])
def test_a_loss_that_turns_nan_keeps_the_best(made, kind):
    steps = []
    def odd(text): return float("nan") if len(steps) >= 2 else 0.0
    objective = lambda: Objective(*objective_of(made).terms, Term(Penalty("odd", odd)))
    r = search(made, kind, objective(), callback=steps.append)
    assert r.stopped.startswith("not a number at step 3") and "'odd'" in r.stopped and len(r.trace) == 2 and r.loss == steps[1]["loss"]
    assert math.isfinite(r.loss) and r.text == steps[1]["text"]
    with pytest.raises(FloatingPointError, match="'odd'"): search(made, kind, objective())  # from the beginning: there is nothing to keep


@pytest.mark.parametrize("kind", ["beam", "gcg", "random-l0"])
def test_a_batch_that_does_not_fit_is_halved(made, kind, monkeypatch):
    whole, sizes, exact = search(made, kind, steps=3), [], Spelled.exact
    def small(self, texts):
        sizes.append(len(texts))
        if len(texts) > 7: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return exact(self, texts)
    monkeypatch.setattr(Spelled, "exact", small)
    same_result(search(made, kind, steps=3), whole)
    assert max(sizes) > 7 and 4 <= max(s for s in sizes if s <= 7)
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="another"):
        m.setattr(Spelled, "exact", lambda *a: (_ for _ in ()).throw(RuntimeError("another fault")))
        search(made, kind, steps=3)


def test_evaluate_gives_up_where_one_row_does_not_fit(made, monkeypatch):
    objective, rows = objective_of(made), [[10, 20, 30], [40, 50], [60, 61]]
    want, once, call = objective(rows), [], Objective.__call__
    def odd(self, seqs, start=1):
        if len(seqs) == 3 or once == "always": raise torch.OutOfMemoryError("out of memory")
        return call(self, seqs, start)
    monkeypatch.setattr(Objective, "__call__", odd)
    got = evaluate(objective, rows, 1)
    close(got.total, want.total)
    for name in want.terms: close(got.terms[name], want.terms[name])
    once = "always"
    with pytest.raises(torch.OutOfMemoryError): evaluate(objective, rows, 1)


def test_prompts_longer_than_the_model_takes(made):
    for kind in ("beam", "gcg"):
        with pytest.raises(ValueError, match="gpt2.*64 at most"): search(made, kind, prefix=" a cat"*33)


def test_a_text_that_grows_to_the_longest_is_not_lost(made):
    r = search(made, "beam", prefix=" a cat"*31, steps=5, beam=1)  # 62 tokens; the model takes 64
    assert 62 < len(r.ids) <= 64 and r.trace and r.stopped not in ("steps", "interrupted")


@pytest.mark.parametrize("ranker", ["combined", "surrogate", "vocabulary", "lm", "random"])
def test_autodan_reaches_a_target_text_of_the_source(made, ranker):
    "A loss of the source model itself is an objective like any other."
    lm = made["gpt2"]
    text = TargetText(lm, " ran after the ball")
    r = AutoDAN(steps=2, beam=2, candidates=16, ranker=ranker, progress=False).minimize(Objective(Term(text), source=lm), PREFIX)
    assert r.loss == pytest.approx(text.exact_ids([r.ids]).item(), abs=1e-4)


def test_gcg_without_a_gradient_of_one_term(made):
    "A term without a gradient is left out of the gradient, and is still part of the exact values."
    r = search(made, "gcg", objective_of(made, watch=Watch))
    assert r.text == SENTENCE and r.terms["watch"] == 0


def test_suffix_and_end(made):
    full = SENTENCE + ", two"
    for kind in ("beam", "uniform-cost", "gcg"):
        objective = objective_of(made, full)
        r = search(made, kind, objective, suffix=", two", steps=12 if kind == "gcg" else 5)
        assert all(t.endswith(", two") for call in objective.terms[1].loss.seen for t in call)
        if kind == "gcg": assert r.text == full
        assert r.loss == pytest.approx(objective_of(made, full)([r.ids], 4)[0][0], abs=1e-5)
    r = search(made, "beam", end=" mat", steps=6)
    assert r.text == SENTENCE and all(t["text"].endswith(" mat") or t["loss"] is None for t in r.trace)
    assert all(n["ids"][-1] != r.ids[-1] for t in r.trace for n in t["frontier"])


def test_a_users_own_ranker_and_strategy(made):
    class Best(Ranker):
        def predict(self, term, state): return term.exact(state.texts(range(V)))  # reads all tokens
    worst = lambda new, older, beam: sorted(new, key=lambda n: -n.total)[:1]
    assert search(made, "beam", ranker=Best(), candidates=1, beam=1).text == SENTENCE
    assert search(made, "beam", ranker=Best(), candidates=2, strategy=worst).text != SENTENCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(made, dtype):
    torch.manual_seed(0)
    lm = source_of("gpt2", dtype)
    target = bert("twin", byte_bpe(), lm.embedding_table.detach().float(), dtype)
    adapter = adapter_of(lm, target, {l: made["same"].tensors[l] for l in (1, 2, 3)})
    objective = lambda: Objective(Term(lm, 1e-3), Term(Spelled(target, SENTENCE), adapter=adapter), Term(target.text("the dog"), 1e-3, adapter=adapter))
    for kind in ("beam", "gcg", "beam-fuse"):
        r = search(made, kind, objective(), seed=1, candidates=32)
        assert r.text == SENTENCE and r.loss < 0.1


class Slow(Watch):
    "A loss for which a text takes 2 ms; it keeps the number of texts of each call."
    def exact_ids(self, seqs, start=1):
        time.sleep(0.002*len(seqs))
        return super().exact_ids(seqs, start)


class SlowSlope(Slow, Slope): pass


@pytest.mark.parametrize("kind", ["greedy", "gcg", "random-l0"])
def test_a_step_ends_with_the_batch_in_which_the_time_is_over(made, kind):
    "200 texts a step of 2 ms each: 0.4 s a step without a limit, and a batch of 32 with one that is over at once."
    objective = objective_of(made, watch=SlowSlope if kind == "gcg" else Slow)
    watch = objective.terms[-1].loss
    free = search(made, kind, objective, steps=1, candidates=200, **(dict(topk=64) if kind == "gcg" else {}))
    assert free.evaluations > 100 and max(map(len, watch.rows)) > 100
    watch.rows.clear()
    r = search(made, kind, objective, steps=50, candidates=200, max_seconds=1e-6, **(dict(topk=64) if kind == "gcg" else {}))
    assert r.stopped == "time" and len(r.trace) == 1 and r.loss < math.inf
    assert r.evaluations == sum(map(len, watch.rows)) and max(map(len, watch.rows)) <= 32 and r.evaluations <= 33    # the start is a text of its own
    again = evaluate(objective, [r.ids], len(made["gpt2"].tokenize([PREFIX])[0]))
    assert again.total.item() == pytest.approx(r.loss, abs=1e-5)


def test_batches_between_two_looks_at_the_clock_change_nothing_else(made):
    for kind in ("beam", "gcg", "random-l0"):
        free, timed = search(made, kind, steps=3), search(made, kind, steps=3, max_seconds=1e6)
        same_result(free, timed)
