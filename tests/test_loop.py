"What is found is not lost: a table of errors, places and optimizers. And a budget is a bound."
import warnings

import pytest
import torch

from fuse_nb.autodan import AutoDAN
from fuse_nb.losses import Penalty
from fuse_nb.objective import Objective, Term
from fuse_nb.ranking import Ranker
from fuse_nb.result import Result
from fuse_nb.swaps import GCG, PEZ, RandomSearch
from test_optimizer import PREFIX, Slope, Watch, objective_of
from test_search import made, own_cache  # noqa: F401 (fixtures)


class Odd(BaseException):
    "Neither an error nor an exit: what other libraries derive from BaseException."


class Slotted(SystemExit):
    __slots__ = ()


ERRORS = [RuntimeError("cuda error: device-side assert"), MemoryError(), OSError("disk full"), ZeroDivisionError("0"), StopIteration(), StopAsyncIteration(),
          ValueError("bad"), TypeError("worse"), FloatingPointError("nan"), KeyError("k"), AssertionError(), UserWarning("told"), torch.OutOfMemoryError("out of memory")]
PASSING = [SystemExit(3), GeneratorExit(), Odd("odd"), Slotted(1)]
KINDS = {
    "beam": lambda **o: AutoDAN(**{**dict(beam=2, candidates=8, ranker="lm"), **o}),
    "combined": lambda **o: AutoDAN(**{**dict(beam=2, candidates=8), **o}),
    "gcg": lambda **o: GCG(**{**dict(candidates=16, length=6), **o}),
    "pez": lambda **o: PEZ(**{**dict(length=6), **o}),
    "random": lambda **o: RandomSearch(**{**dict(candidates=16, length=6), **o}),
    "random-l2": lambda **o: RandomSearch(**{**dict(candidates=16, length=6, ball="l2", radius=20), **o}),
}
named = lambda e: type(e).__name__


class Trap(Watch):
    "A loss of the source, always 0, that raises once the second step has begun."
    def __init__(self, lm, rows, error): super().__init__(lm); self.trace, self.error = rows, error

    def exact_ids(self, seqs, start=1, **more):
        if self.trace and self.error is not None: raise self.error
        return torch.zeros(len(seqs))


class Steep(Trap):
    "The same with a gradient, which raises too."
    def losses(self, embeds):
        if self.trace and self.error is not None: raise self.error
        return 0*embeds.sum((1, 2))


class Failing(Ranker):
    "The language model's order; raises once the second step has begun."
    def __init__(self, rows, error): self.trace, self.error = rows, error

    def rank(self, objective, state):
        if self.trace and self.error is not None: raise self.error
        return -state.logprobs


def run(made, kind, place, error):
    rows = []
    def callback(row):
        rows.append(row)
        if place == "callback" and error is not None: raise error
    trap = (Steep if kind in ("gcg", "pez") else Trap)(made["gpt2"], rows, error if place == "loss" else None)
    objective = Objective(*objective_of(made).terms, Term(trap), source=made["gpt2"])
    more = dict(ranker=Failing(rows, error)) if place == "ranker" else {}
    return KINDS[kind](steps=3, progress=False, callback=callback, **more).minimize(objective, PREFIX, seed=1)


PLACES = [(kind, place) for kind in KINDS for place in ("loss", "callback")] + [("beam", "ranker")]


@pytest.mark.parametrize("kind, place", PLACES, ids=lambda x: x)
def test_an_error_ends_the_search_with_what_it_found(made, kind, place):  # noqa: F811
    whole = run(made, kind, place, None)
    assert whole.stopped == "steps" and len(whole.trace) == 3
    for error in ERRORS:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            r = run(made, kind, place, error)
        assert isinstance(r, Result) and r.text == whole.trace[0]["text"] and r.loss == pytest.approx(whole.trace[0]["loss"], abs=1e-5), named(error)
        told = [str(w.message) for w in said if "stopped early" in str(w.message)]
        assert len(told) == 1 and r.stopped in told[0]
        if isinstance(error, FloatingPointError) and place != "callback": assert r.stopped.startswith("not a number at step 2")
        else: assert named(error) in r.stopped and ("callback at step 1" if place == "callback" else "at step 2") in r.stopped, r.stopped
        assert len(r.trace) == 1


@pytest.mark.parametrize("kind, place", PLACES, ids=lambda x: x)
def test_what_is_no_error_passes_and_carries_the_result(made, kind, place):  # noqa: F811
    whole = run(made, kind, place, None)
    for error in PASSING:
        with pytest.raises(type(error)) as caught: run(made, kind, place, error)
        assert caught.value is error and error.result.text == whole.trace[0]["text"]
        assert error.result.loss == pytest.approx(whole.trace[0]["loss"], abs=1e-5)
    r = run(made, kind, place, KeyboardInterrupt())
    assert r.stopped == "interrupted" and r.text == whole.trace[0]["text"]


def test_warnings_that_are_errors_carry_the_result_too(made):  # noqa: F811
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning) as caught: run(made, "beam", "loss", RuntimeError("cuda"))
    assert caught.value.result.text


@pytest.mark.parametrize("kind", ["gcg", "pez", "random"])
def test_the_start_is_a_result_that_is_not_lost(made, kind):  # noqa: F811
    "An error in the first step, after the start was evaluated: bad input is raised with the result, other errors end the search."
    class First(Slope):
        calls = 0
        def exact_ids(self, seqs, start=1, **more):
            self.calls += 1
            if self.calls > 1: raise self.error
            return torch.zeros(len(seqs))
        def losses(self, embeds):
            if self.calls: raise self.error
            return 0*embeds.sum((1, 2))
    for error, raised in (RuntimeError("cuda"), False), (ValueError("bad"), True), (SystemExit(), True):
        trap = First(made["gpt2"])
        trap.error = error
        objective = Objective(*objective_of(made).terms, Term(trap), source=made["gpt2"])
        search = lambda: KINDS[kind](steps=3, progress=False).minimize(objective, PREFIX, seed=1)
        if raised:
            with pytest.raises(type(error)) as caught: search()
            assert caught.value.result.text.startswith(PREFIX)
        else:
            with pytest.warns(UserWarning, match="stopped early"): r = search()
            assert r.text.startswith(PREFIX) and "cuda" in r.stopped and not r.trace


def test_without_a_result_every_error_is_raised_as_it_is(made):  # noqa: F811
    for error in (RuntimeError("cuda"), ValueError("bad"), SystemExit(2), KeyboardInterrupt()):
        def fail(text, error=error): raise error
        with pytest.raises(type(error)) as caught: AutoDAN(steps=2, progress=False).minimize(Objective(Term(Penalty("fails", fail)), source=made["gpt2"]), PREFIX)
        assert not hasattr(caught.value, "result")


# --- a budget is a bound -------------------------------------------------------------------------------------------------------------------

class Seen:
    "A loss of texts, always 0, that counts the different ones."
    label, model = "seen", None
    def __init__(self): self.texts = set()
    def exact(self, texts): self.texts |= set(texts); return torch.zeros(len(texts))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 20, 37, 50])
def test_max_evaluations_is_never_passed(made, kind, budget):  # noqa: F811
    seen = Term(Seen())
    objective = Objective(*objective_of(made).terms, seen, source=made["gpt2"])
    r = KINDS[kind](steps=60, max_evaluations=budget, progress=False).minimize(objective, PREFIX, seed=2)
    spelled = {t for call in objective.terms[1].loss.seen for t in call}  # what the ranker tries is among these
    assert r.evaluations <= budget and len(seen.loss.texts) <= budget and len(spelled) <= budget
    assert r.stopped == "evaluations" or kind in ("pez",) and r.stopped == "steps"
    assert r.evaluations >= budget - r.dropped or kind == "pez"
    if r.trace: assert r.evaluations == r.trace[-1]["evaluations"]


@pytest.mark.parametrize("ranker", ["fuse", "vocabulary", "combined", "surrogate"])
def test_a_ranker_that_tries_words_stays_within_the_budget(made, ranker):  # noqa: F811
    for budget in (5, 16, 17, 33, 60):
        objective = objective_of(made)
        r = AutoDAN(steps=20, beam=3, candidates=8, ranker=ranker, max_evaluations=budget, progress=False).minimize(objective, PREFIX)
        assert r.evaluations <= budget and len({t for call in objective.terms[1].loss.seen for t in call}) <= budget


def test_a_continued_search_keeps_to_the_budget(made):  # noqa: F811
    for kind in KINDS:
        first = KINDS[kind](steps=60, max_evaluations=20, progress=False).minimize(objective_of(made), PREFIX, seed=2)
        again = KINDS[kind](steps=60, max_evaluations=20, progress=False).minimize(objective_of(made), PREFIX, seed=2, resume=Result.from_json(first.to_json()))
        assert again.evaluations <= 20 and again.text == first.text, kind


# --- the door --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", ["a", None, 1.5, -1, True, 2**40])
@pytest.mark.parametrize("kind", ["beam", "gcg", "pez", "random"])
def test_a_seed_is_a_whole_number(made, kind, seed):  # noqa: F811
    with pytest.raises((TypeError, ValueError), match="seed"): KINDS[kind](steps=1, progress=False).minimize(objective_of(made), PREFIX, seed=seed)


def test_settings_are_checked_at_the_door(made):  # noqa: F811
    for bad in (dict(beam=None), dict(steps=None), dict(candidates=10**23), dict(beam=10**9), dict(candidates="4"), dict(max_evaluations=0), dict(patience=1.5),
                dict(max_seconds=float("nan")), dict(steps=True)):
        with pytest.raises(ValueError, match=next(iter(bad))): AutoDAN(**bad)
    for make, bad in ((GCG, dict(topk=0)), (GCG, dict(length=None)), (RandomSearch, dict(radius=0.5)), (GCG, dict(buffer=-1)), (PEZ, dict(lr=0)), (RandomSearch, dict(ball=None))):
        with pytest.raises(ValueError, match=next(iter(bad))): make(**bad)
    for bad in (dict(max_seconds="1"), dict(callback=3)):
        with pytest.raises((TypeError, ValueError), match=next(iter(bad))): AutoDAN(**bad)
    with pytest.raises(ValueError, match="steps must be at least 2 with the end token"): AutoDAN(steps=1, end=".")
    o = objective_of(made)
    for given, said in ((dict(prefix=3), "prefix"), (dict(prefix=PREFIX, suffix=None, resume="x"), "resume"), (dict(prefix=PREFIX, suffix=7), "suffix"), (dict(prefix="a \ud800"), "prefix")):
        with pytest.raises((TypeError, ValueError), match=said): AutoDAN(steps=2, progress=False).minimize(o, **given)
    with pytest.raises((TypeError, ValueError), match="strategy"): AutoDAN(strategy=None).minimize(o, PREFIX)
    with pytest.raises(TypeError, match="objective must be an Objective"): AutoDAN().minimize("x", PREFIX)
    with pytest.raises((TypeError, ValueError), match="init"): GCG(steps=1).minimize(o, PREFIX, init=5)
    with pytest.raises(ValueError, match="init"): GCG(steps=1).minimize(o, PREFIX, init="")


def test_a_file_that_is_no_result_is_refused(tmp_path):
    for text in ('{"a": 1}', "[]", '{"text": "a"}', "no json"):
        (tmp_path/"r.json").write_text(text)
        with pytest.raises(ValueError): Result.from_json(tmp_path/"r.json")


def test_another_objective_of_the_same_name_is_not_continued(made):  # noqa: F811
    "Objectives are compared by what they compare with, where they can say it."
    class Told(Objective):
        what = "a cat"
        def identity(self): return [self.what]
    first = AutoDAN(steps=1, ranker="lm", progress=False).minimize(Told(*objective_of(made).terms, source=made["gpt2"]), PREFIX)
    other = Told(*objective_of(made).terms, source=made["gpt2"])
    other.what = "a dog"
    with pytest.raises(ValueError, match="that run had the objective"): AutoDAN(steps=2, ranker="lm", progress=False).minimize(other, PREFIX, resume=first)
    other.what = "a cat"
    assert len(AutoDAN(steps=2, ranker="lm", progress=False).minimize(other, PREFIX, resume=first).trace) == 2


@pytest.mark.parametrize("progress, shown", [(True, True), (False, False), (None, False)])    # None: in a terminal only
def test_progress_is_shown_where_it_is_asked_for(made, capsys, progress, shown):
    RandomSearch(steps=2, candidates=4, length=3, progress=progress).minimize(objective_of(made), PREFIX)
    assert ("step" in capsys.readouterr().err) == shown
