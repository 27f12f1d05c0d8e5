"AutoDAN keeps its ranker, and fluency from sums is fluency as its term reads it."
import copy
import pickle

import pytest
import torch

import fuse_nb.autodan as autodan_room
import fuse_nb.tables as tables_room
from fuse_nb.autodan import AutoDAN
from fuse_nb.combined import RANKERS, Combined
from fuse_nb.losses import Fluency
from fuse_nb.objective import Objective, Term
from test_optimizer import PREFIX
from test_search import made, own_cache  # noqa: F401 (fixtures)


def about(made, source="gpt2"): return Objective(Term(made[source]), Term(made["pieces"].text("the dog ran"), 5.0), source=made[source])  # noqa: F811


def small(**more): return AutoDAN(**{**dict(steps=2, beam=2, candidates=6, progress=False), **more})


@pytest.mark.parametrize("name", ["words", "vocabulary", "surrogate", "combined"])
def test_a_ranker_by_name_is_made_once_and_reads_its_tables_once(made, monkeypatch, name):  # noqa: F811
    reads = []
    for table in ("word_table", "spelling_table"):
        real = getattr(tables_room, table)
        monkeypatch.setattr(tables_room, table, lambda *a, real=real, table=table, **k: reads.append(table) or real(*a, **k))
    search = small(ranker=name)
    first = search.minimize(about(made), PREFIX)
    read = list(reads)
    again = search.minimize(about(made), PREFIX)
    assert read and reads == read
    fresh = small(ranker=name).minimize(about(made), PREFIX)
    assert first.ids == again.ids == fresh.ids and [t["frontier"] for t in first.trace] == [t["frontier"] for t in again.trace] == [t["frontier"] for t in fresh.trace]
    assert first.settings == again.settings == fresh.settings and first.settings["ranker"] == name
    assert not [k for k in {**search.settings(), **AutoDAN().settings()} if k.startswith("_")]


def test_one_optimizer_over_several_models_finds_what_a_fresh_one_finds(made):  # noqa: F811
    search = small()
    for source in ("gpt2", "llama", "gpt2"):
        got, want = search.minimize(about(made, source), PREFIX), small().minimize(about(made, source), PREFIX)
        assert got.ids == want.ids and got.loss == want.loss


def test_another_ranker_is_taken_when_it_is_asked_for(made):  # noqa: F811
    search = small(ranker="lm")
    assert type(search.own_ranker()) is RANKERS["lm"] and search.own_ranker() is search.own_ranker()
    search.ranker = "combined"
    assert type(search.own_ranker()) is Combined and search.minimize(about(made), PREFIX).ids == small().minimize(about(made), PREFIX).ids
    mine = Combined(4)
    search.ranker = mine
    assert search.own_ranker() is mine and small().own_ranker() is not small().own_ranker()
    for other in (copy.copy(search), copy.deepcopy(small(ranker="lm")), pickle.loads(pickle.dumps(small(ranker="lm")))): assert other._made is None
    used = small()
    used.minimize(about(made), PREFIX)
    assert pickle.loads(pickle.dumps(used)) == used == small()  # what was made of the settings is no setting
    with pytest.raises(ValueError, match="no ranker"): small(ranker="best").minimize(about(made), PREFIX)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("scope", ["found", "text"])
@pytest.mark.parametrize("reads", ["whole", "found"])
def test_fluency_from_sums_is_what_the_term_reads(made, family, scope, reads):  # noqa: F811
    lm = made[family]
    o = lambda: Objective(Term(Fluency(lm, scope=scope), reads=reads), Term(made["pieces"].text("a dog"), 2.0))
    for suffix in ("", " on a mat"):
        r = small(steps=3, ranker="lm").minimize(o(), PREFIX, suffix)
        start, end = len(lm.tokenize([PREFIX])[0]), len(lm.tokenizer(suffix, add_special_tokens=False)["input_ids"]) if suffix else 0
        values = o()([r.ids], start, end=end)
        assert r.loss == pytest.approx(values[0][0], abs=1e-4) and r.terms["fluency"] == pytest.approx(values[0][1]["fluency"], abs=1e-4)
        if reads == "whole":
            first = start if scope == "found" else 1
            assert r.terms["fluency"] == pytest.approx(lm.nll([r.ids], prefix_len=first, mean=True).item(), abs=1e-4)


def test_a_users_rank_is_asked_text_by_text_and_checked(made):  # noqa: F811
    class Own:
        def rank(self, objective, state): return -state.logprobs if len(state.left) < 99 else None
    got, want = small(ranker=Own()).minimize(about(made), PREFIX), small(ranker="lm").minimize(about(made), PREFIX)
    assert got.ids == want.ids
    class Short(Own):
        def rank(self, objective, state): return torch.zeros(3)
    with pytest.raises(ValueError, match="what Short returns"): small(ranker=Short()).minimize(about(made), PREFIX)
    assert not hasattr(autodan_room, "_Own")


def test_a_text_that_cannot_grow_says_how_much_is_given(made):
    lm = made["gpt2"]
    long, tail = " a"*40, " b"*40
    given = len(lm.tokenize([long])[0]) + len(lm.tokenizer(tail, add_special_tokens=False)["input_ids"])
    with pytest.raises(ValueError, match=f"have {given} tokens, gpt2 takes 64 at most"):
        AutoDAN(steps=2, ranker="lm", progress=False).minimize(Objective(Term(lm)), long, tail)
