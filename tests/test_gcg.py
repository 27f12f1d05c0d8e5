"GCG and the loss of a target text: shared reading against the definition, on small models of random weights; what is read; the search itself."
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st

import fuse_nb.search as search_room
from fuse_nb.causal import CausalLM
from fuse_nb.losses import TargetText
from fuse_nb.prefixes import batches as _batches, spine as _spine
from fuse_nb.objective import Objective, Term, gradient
from fuse_nb.search import Result
from fuse_nb.swaps import GCG
from test_models import FAMILIES, V, byte_bpe, causal, every_source, folders, lm  # noqa: F401 (fixtures)

TEXT = " ran after the ball"
DEVICES = ["cpu"] + ["cuda"]*torch.cuda.is_available() + ["mps"]*torch.backends.mps.is_available()


def definition(lm, seq, ids):
    "Cross-entropy of `ids` after `seq`, one whole forward pass, no cache."
    with torch.no_grad(): logits = lm.model(input_ids=torch.tensor([[*seq, *ids]], device=lm.device)).logits[0].float()
    return F.cross_entropy(logits[len(seq) - 1:-1], torch.tensor(ids, device=lm.device)).item()


def check(loss, seqs):
    got = loss.exact_ids(seqs, 1)
    assert got.shape == (len(seqs),)
    torch.testing.assert_close(got.cpu(), torch.tensor([definition(loss.lm, s, loss.ids) for s in seqs]), atol=1e-4, rtol=0)


def swaps(now, left, right, n, seed):
    g = random.Random(seed)
    rows = []
    for _ in range(n):
        p = g.randrange(len(now))
        rows.append(left + now[:p] + [g.randrange(4, V)] + now[p + 1:] + right)
    return rows


@every_source
def test_swaps_equal_the_definition_step_after_step(lm):  # noqa: F811
    loss, now, left, right = TargetText(lm, TEXT), [7, 9, 30, 7, 50, 61], [11, 12, 13, 14, 15], [20, 21]
    check(loss, [left + now + right])
    for step in range(3):  # each call goes on from the last call's cache
        rows = swaps(now, left, right, 24, step)
        check(loss, rows)
        now = rows[step][len(left):-len(right)]
    check(loss, [left + now + right])
    check(loss, [[99, *left] + now + right])  # another prefix: nothing of the cache serves


@every_source
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.lists(st.lists(st.integers(4, 6), min_size=1, max_size=12), min_size=1, max_size=9), min_size=1, max_size=3))
def test_any_prompts_equal_the_definition(lm, calls):  # noqa: F811
    loss = TargetText(lm, TEXT)  # few different tokens, so many prompts share much; lengths differ, prompts repeat
    for seqs in calls: check(loss, seqs)


@pytest.mark.parametrize("device", DEVICES)
def test_each_device(folders, device):  # noqa: F811
    check(TargetText(CausalLM.from_pretrained(folders["llama"], device=device), TEXT), swaps([7, 9, 30, 7], [11, 12], [20], 16, 0))


def test_a_target_of_one_token_and_errors(folders):  # noqa: F811
    lm = CausalLM.from_pretrained(folders["llama"], device="cpu")
    one = TargetText(lm, "x")
    assert len(one.ids) == 1
    check(one, [[5], [5], [6, 7], [5, 7]])
    assert one.exact_ids([]).shape == (0,)
    with pytest.raises(ValueError, match="no tokens"): one.exact_ids([[5], []])
    with pytest.raises(ValueError, match="no tokens"): TargetText(lm, "")
    with pytest.raises(ValueError, match="64 at most"): TargetText(lm, TEXT).exact_ids([[5]*64, [5]*64 + [6]])
    with pytest.raises(ValueError, match="64 at most"): gradient(Objective(Term(TargetText(lm, TEXT)), source=lm), [[5]*64])


def test_only_positions_from_the_swap_on_are_read(folders):  # noqa: F811
    lm = CausalLM.from_pretrained(folders["llama"], device="cpu")
    loss, now, left, right = TargetText(lm, TEXT), [7, 9, 30, 40, 50, 61, 70, 71], list(range(80, 100)), [20, 21]
    rows = [left + now[:p] + [100 + i] + now[p + 1:] + right for p in range(8) for i in range(16)]
    seen = []
    def counted(_, a, k): seen.append((k["input_ids"].numel(), len(k["logits_to_keep"])))
    lm.model.register_forward_pre_hook(counted, with_kwargs=True)
    loss.exact_ids(rows)
    tail, T = len(right) + len(loss.ids) - 1, len(loss.ids)
    assert seen[0] == (len(left) + 7, 1)  # what most share, once: all but the last position's swaps
    assert sum(n for n, _ in seen[1:]) <= sum(16*(8 - p + tail) for p in range(8)) + 32*7  # merged groups may repeat what 7 calls would cost
    assert all(last == T for _, last in seen[1:])
    seen.clear()
    loss.exact_ids([r[:len(left)] + [5] + r[len(left) + 1:] for r in rows])
    assert seen[0][0] <= 7  # the prefix is still there
    seen.clear()
    loss.exact_ids(rows[:3]*40)
    assert sum(n for n, _ in seen) < 4*(8 + tail + 1)  # repeated prompts are read once


def test_spine_and_batches():
    assert _spine([(1, 2, 3), (1, 2, 4), (1, 5, 3)]) == [1, 2]
    assert _spine([(1, 2), (3, 4)]) == [] and _spine([(1, 2, 3), (1, 2)]) == [1, 2]
    leaves = {0: ["a"], 3: ["b", "c"], 9: ["d"]*50}
    assert _batches(leaves, 10, 10**6) == [(0, ["a", "b", "c"] + ["d"]*50)]    # calls are dear: one
    assert _batches(leaves, 10, 0) == [(0, ["a"]), (3, ["b", "c"]), (9, ["d"]*50)] # calls are free: no position twice
    assert _batches(leaves, 10, 7) == [(0, ["a", "b", "c"]), (9, ["d"]*50)]        # 6 repeated positions < 7 < 300


@every_source
def test_losses_are_differentiable_and_equal(lm):  # noqa: F811
    loss, seqs = TargetText(lm, TEXT), [[5, 6, 7, 8], [9, 6, 5, 4]]
    x = lm.embed(seqs).clone().requires_grad_()
    out = loss.losses(x)
    torch.testing.assert_close(out, torch.tensor([definition(lm, s, loss.ids) for s in seqs]), atol=1e-4, rtol=0)
    grad, = torch.autograd.grad(out.sum(), x)
    step = 1e-2*F.normalize(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad(): slope = (loss.losses(x + step) - loss.losses(x - step))/2
    torch.testing.assert_close(slope, (grad*step).sum((1, 2)), atol=1e-4, rtol=5e-2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert abs(loss.losses(x, mask)[1].item() - definition(lm, seqs[1][:2], loss.ids)) < 1e-4


@pytest.fixture
def tiny(folders):  # noqa: F811
    return CausalLM.from_pretrained(folders["llama"], device="cpu")


def test_gcg_takes_the_best_swap_of_each_step_better_or_worse(tiny, monkeypatch):
    objective, frontiers, tried = Objective(Term(TargetText(tiny, TEXT)), source=tiny), [], []
    search = lambda steps, seed, resume=None, **more: GCG(steps=steps, length=5, candidates=3, topk=64, guessed=0, joined=1, progress=False, **more).minimize(objective, prefix="a cat on", suffix=" park", seed=seed, resume=resume)
    real = search_room.evaluate
    monkeypatch.setattr(search_room, "evaluate", lambda o, rows, *given, **more: tried.append((rows, v := real(o, rows, *given, **more))) or v)
    r = search(12, 3, callback=lambda t: frontiers.append(t["frontier"]))
    left, right = tiny.tokenize(["a cat on"])[0], tiny.tokenizer(" park", add_special_tokens=False)["input_ids"]
    now, values = tried[0][0][0][len(left):-len(right)], []
    for (rows, v), frontier in zip(tried[1:], frontiers, strict=True):
        exact = [definition(tiny, row, objective.terms[0].loss.ids) for row in rows]
        torch.testing.assert_close(v.total, torch.tensor(exact), atol=1e-4, rtol=0)
        assert 1 <= len(rows) == len(set(map(tuple, rows))) <= 3
        assert all(row[:len(left)] == left and row[-len(right):] == right and sum(x != y for x, y in zip(row[len(left):-len(right)], now)) <= 1 for row in rows)
        assert left + frontier + right == rows[int(v.total.argmin())]
        now = frontier; values.append(min(exact))
    assert any(b > a + 1e-3 for a, b in zip(values, values[1:]))  # it did go uphill, and the result is the best of all
    assert abs(r.loss - min(values + [tried[0][1].total.item()])) < 1e-4
    again = search(12, 3)
    assert (again.ids, again.loss, again.evaluations) == (r.ids, r.loss, r.evaluations) and search(12, 4).ids != r.ids
    rest = search(12, 3, Result.from_json(search(6, 3).to_json()))
    assert (rest.ids, [t["frontier"] for t in rest.trace]) == (r.ids, frontiers)


@every_source
def test_extend_keeps_the_logits_of_the_last_tokens(lm):  # noqa: F811
    _, cache = lm.prefill([[5, 6, 7], [8, 9, 10]])
    new = [[4, 5, 6, 7], [7, 6, 5, 4], [9, 9, 9, 9]]
    every, _ = lm.extend(cache, [1, 0, 1], new, every=True)
    kept, _ = lm.extend(cache, [1, 0, 1], new, keep=2)
    assert kept.shape == (3, 2, V)
    torch.testing.assert_close(kept, every[:, -2:], atol=1e-4, rtol=1e-4)
