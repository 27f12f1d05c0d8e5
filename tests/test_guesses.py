"Guessed swaps, joined swaps, the visited set: GCG's default beside the plain one."
import numpy as np
import pytest
import torch

from fuse_nb.guesses import Guesser, joins
from fuse_nb.losses import TargetText
from fuse_nb.objective import Objective, Term
from fuse_nb.result import Result
from fuse_nb.swaps import GCG
from test_search import made, own_cache  # noqa: F401 (fixtures)

PREFIX = "a photo of"


def by_gaussian_process(table, texts, losses, now, swapped):
    "Numpy, in float64: the posterior mean of the swapped text minus that of the present one, from the kernel alone."
    e = table - table.mean(0)
    e = e/np.linalg.norm(e, axis=1, keepdims=True)
    k = lambda a, b: 0.5*(e[a].sum(0) @ e[b].sum(0) + sum(e[x] @ e[y] + (x == y) for x, y in zip(a, b)))
    y = np.minimum(losses, np.quantile(losses, 0.75))
    noise = [np.exp(max(0, sum(x != z for x, z in zip(t, now)) - 1)/3) for t in texts]
    K = np.array([[k(a, b) for b in texts] for a in texts]) + np.diag(noise)
    alpha = np.linalg.solve(K, y - y.mean())
    return sum(a*(k(t, swapped) - k(t, now)) for a, t in zip(alpha, texts))


@pytest.mark.parametrize("seed", range(3))
def test_a_guess_is_the_posterior_mean_of_the_change(seed):
    draw = np.random.default_rng(seed)
    table, texts, losses = draw.normal(1, 1, (30, 5)), draw.integers(0, 30, (25, 6)).tolist(), draw.normal(size=25)
    guesser = Guesser(torch.tensor(table, dtype=torch.float32))
    guesser.add(texts, losses.tolist())
    now = texts[4]
    got = guesser.changes(now)
    for p, v in zip(draw.integers(0, 6, 20), draw.integers(0, 30, 20)):
        swapped = [*now[:p], int(v), *now[p + 1:]]
        assert got[p, v].item() == pytest.approx(by_gaussian_process(table, texts, losses, now, swapped), abs=1e-4)
    assert got.gather(1, torch.tensor(now)[:, None]).abs().max() == 0


def test_it_forgets_the_oldest_and_refuses_unequal_lists():
    guesser = Guesser(torch.randn(9, 2), most=3)
    guesser.add([[0], [1], [2], [3]], [0.0, 1.0, 2.0, 3.0])
    assert guesser.known == {(1,): 1.0, (2,): 2.0, (3,): 3.0}
    with pytest.raises(ValueError, match="same length"): guesser.add([[0]], [])


def test_best_keeps_to_what_is_allowed_and_unknown_and_spreads_over_the_places():
    draw = torch.Generator().manual_seed(0)
    guesser, now = Guesser(torch.randn(40, 4, generator=draw)), [1, 2, 3]
    texts = torch.randint(40, (30, 3), generator=draw).tolist() + [now]
    guesser.add(texts, torch.randn(31, generator=draw).tolist())
    allowed = torch.arange(40) >= 10
    lists, found = guesser.best(now, allowed, 6, torch.tensor([[4, 5]]*3))
    assert lists.tolist() == [[4, 5]]*3
    changed = [[p for p in range(3) if t[p] != now[p]] for t in found]
    assert 6 <= len(found) <= 12 and all(len(c) == 1 for c in changed) and len(set(map(tuple, found))) == len(found)
    assert all(t[c[0]] >= 10 and tuple(t) not in guesser.known for t, c in zip(found, changed))
    assert max(changed.count([p]) for p in range(3)) <= 4


def test_joins_take_each_places_best_in_order():
    tried, losses = [[9, 0, 0, 0], [8, 0, 0, 0], [0, 7, 0, 0], [0, 0, 6, 0], [0, 0, 0, 5]], [0.5, 0.9, 0.4, 0.6, 2.0]
    assert joins([0]*4, tried, losses, {(0, 0, 0, 0): 1.0}, 8) == [[9, 7, 0, 0], [9, 7, 6, 0]]
    assert joins([0]*4, tried, losses, {(0, 0, 0, 0): 1.0}, 2) == [[9, 7, 0, 0]]
    assert joins([0]*4, tried[:2], losses[:2], {}, 8) == [] and joins([0]*4, [[0]*4], [1.0], {}, 8) == []


def objective(made): return Objective(Term(TargetText(made["gpt2"], " ran after the ball")), source=made["gpt2"])  # noqa: F811


def test_a_resumed_default_search_is_the_uninterrupted_one(made):  # noqa: F811
    search = lambda steps, resume=None: GCG(steps=steps, length=5, candidates=12, topk=16, progress=False).minimize(objective(made), PREFIX, seed=3, resume=resume)
    whole, part = search(8), Result.from_json(search(4).to_json())
    rest = search(8, part)
    assert (rest.ids, rest.loss, [t["frontier"] for t in rest.trace]) == (whole.ids, whole.loss, [t["frontier"] for t in whole.trace])
    assert len(whole.trace[-1]["known"]) <= 512 and all("known" not in t for t in whole.trace[:-1])


def test_several_places_change_in_a_step(made):  # noqa: F811
    def apart(options):
        trace = GCG(steps=8, length=6, candidates=16, topk=32, progress=False, **options).minimize(objective(made), PREFIX, seed=1).trace
        return max(sum(x != y for x, y in zip(a["frontier"], b["frontier"])) for a, b in zip(trace, trace[1:]))
    assert apart({}) > 1 and apart(dict(joined=1, guessed=0)) == 1


def test_as_published_and_what_is_refused():
    plain = GCG.as_published(steps=7)
    assert (plain.steps, plain.candidates, plain.topk, plain.guessed, plain.joined) == (7, 512, 256, 0, 1)
    for bad in (dict(joined=0), dict(guessed=1.5), dict(guessed=-0.1)):
        with pytest.raises(ValueError, match=next(iter(bad))): GCG(**bad)
