"""E6: what each departure of the published code costs, by itself and all together. Writes data/e6_departures.json; a stopped run goes on.

    python tests/experiment_E6.py [--short] [--only gradients|search] [--goals 24]

Where the departure is not in question, everything is the mathematics of the paper with one tangent, at the dummy token "!" that the published code appends.
"""
import argparse, json, time, warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from fuse_nb import CausalLM, FuseAdapter, TextEncoder
from fuse_nb.agreement import interval, rank_correlation
from fuse_nb.autodan import AutoDAN
from fuse_nb.combined import Combined
from fuse_nb.files import cache_dir, write_json
from fuse_nb.gradient import pull, route
from fuse_nb.losses import Fluency
from fuse_nb.objective import Objective, Term
from fuse_nb.probes import made_up, sample_of, slot_of
from fuse_nb.ranking import LM, AsPublished, Fuse, Random, Ranker
from fuse_nb.slots import State
from fuse_nb.tokens import allowed_tokens
from fuse_nb.words import word_ids, word_list

from machine import SEARCH, made

SEED, LONGEST, WEIGHT = 0, 4, 22.0
STEPS, BEAM, CANDIDATES = 8, 4, 16


# --- adapters in which one thing is otherwise ---------------------------------------------------------------------------------------------

class Otherwise:
    "An adapter, but for what a subclass changes."
    def __init__(self, adapter): self.adapter = adapter
    def __getattr__(self, name): return getattr(self.__dict__["adapter"], name)


class Unreversed(Otherwise):
    "1: slices transposed, their order kept: the t-transpose of a tensor whose slices 2..l stand in reverse."
    def __init__(self, adapter):
        back = lambda T: T[..., [-k % T.shape[-1] for k in range(T.shape[-1])]]
        other = FuseAdapter({l: back(T) for l, T in adapter.tensors.items()}, adapter.config, {k: back(T) for k, T in adapter.pairs.items()}, source=adapter.source, target=adapter.target)
        super().__init__(other)


class Noisy(Otherwise):
    "3: a word of more than four tokens meets a standard normal tensor."
    def pieces(self, n, m):
        l = max(n, m)
        if l <= LONGEST: return self.adapter.pieces(n, m)
        if l not in self.adapter.tensors:
            g = torch.Generator().manual_seed(SEED + l)
            T = torch.randn(self.d_source, self.d_target, l, generator=g)
            self.adapter = FuseAdapter(self.adapter.tensors | {l: T}, self.adapter.config, self.adapter.pairs, source=self.adapter.source, target=self.adapter.target)
        return [(l, slice(0, n), slice(0, m))]


class BySource(Otherwise):
    "4 and 7: fitted by the target's count, looked up by the source's."
    def pieces(self, n, m): return [(n, slice(0, n), slice(0, min(n, m)))] if n in self.adapter.tensors else self.adapter.pieces(n, m)


# --- the gradient at the dummy ------------------------------------------------------------------------------------------------------------

class Departed(Ranker):
    "One tangent at an appended dummy, with some of the departures."

    def __init__(self, first_word=False, whole_prefix=False, summed=False, logits=False, map=None, dummy="!"):
        self.first_word, self.whole_prefix, self.summed, self.logits, self.map, self.dummy = first_word, whole_prefix, summed, logits, map, dummy

    def gradients(self, term, states):
        "(k, d_source) of each text of the beam, at its dummy; whether the departure touches it."
        adapter = self.map or term.adapter
        added = states[0].source.tokenizer(self.dummy, add_special_tokens=False)["input_ids"][:1]
        rows = [s.left + added for s in states]
        path = route(adapter, rows, term.prefix, term.suffix)
        ids, mask = term.model.pad(path.target_ids)
        leaf = term.model.embed(ids).detach().requires_grad_()
        grad = torch.autograd.grad(term.loss.losses(leaf, mask).sum(), leaf)[0].float()
        at = np.array([len(r) - 1 for r in rows])
        if self.first_word: grad = self.moved(grad, path, states, at)
        return pull(adapter, path, grad)[torch.arange(len(rows)), torch.from_numpy(at)]

    def moved(self, grad, path, states, at):
        "2: the word of the dummy gets the gradient of the target's first free tokens (6: not those of the prefix)."
        last, out = path.word_of(at), torch.zeros_like(grad)
        begin = np.array([len(s.source.bos_ids) if self.whole_prefix else s.start for s in states])
        first = path.word_of(begin)
        for b in range(len(grad)):
            to, at0 = last[b].nonzero()[:, 0], first[b].nonzero()[:, 0]
            take = torch.arange(at0[0], min(at0[0] + len(to), grad.shape[1])) if len(at0) else to
            out[b, to[:len(take)]] = grad[b, take]
        return out

    def predict_all(self, term, states):
        g = self.gradients(term, states)
        g = g.sum(0, keepdim=True).expand(len(g), -1) if self.summed else g
        return g @ states[0].source.embedding_table.detach().float().T

    def rank_all(self, objective, states):
        if not self.logits: return super().rank_all(objective, states)
        total = -torch.stack([s.logprobs for s in states])
        for t in objective.terms:
            if not isinstance(t.loss, Fluency): total = total + t.weight * self.predict_all(t, states)
        return total


def departures(adapter, bare, by_target, published):
    "name -> (ranker, the adapter of its term, item of the list); the first is the mathematics."
    return {
        "none: one tangent at the dummy": (Departed(), adapter, ""),
        "no reversal": (Departed(map=Unreversed(adapter)), adapter, "1"),
        "the first free word's gradient": (Departed(first_word=True), adapter, "2, 6"),
        "the first word's gradient, prefix included": (Departed(first_word=True, whole_prefix=True), adapter, "2"),
        "noise for long words": (Departed(map=Noisy(adapter)), adapter, "3"),
        "looked up by the source's count": (Departed(map=BySource(by_target)), adapter, "4, 7"),
        "fitted by the target's count": (Departed(map=by_target), adapter, "4"),
        "no ridge": (Departed(map=bare), adapter, ""),
        "summed over the beam": (Departed(summed=True), adapter, "8"),
        "raw logits and raw gradient": (Departed(logits=True), adapter, "10"),
        "all together, as published": (AsPublished(), published, "1-10"),
        "not the dummy: one tangent at a tried word": (Fuse(1), adapter, ""),
        "ours: 16 tangents, calibrated": (Fuse(16), adapter, ""),
    }


# --- the gradients -----------------------------------------------------------------------------------------------------------------------

def long_words(lm, n, count):
    "Words of so many source tokens, without a certain order."
    words = word_list(40_000)[0]
    sizes = [len(i) for i in word_ids(lm.tokenizer, words)]
    good = [w for w, k in zip(words, sizes) if k in n and w.isascii() and w.isalpha()]
    return [good[i] for i in np.random.default_rng(SEED).permutation(len(good))[:count]]


def cases(lm, a):
    "(kind, prompt, goal): the prompts as they come, and with a long word at their end."
    prompts, goals = made_up(12 if a.short else 96)
    every = max(1, len(prompts) // (4 if a.short else 32))
    out = [("as they come", p, g) for p, g in zip(prompts, goals)]
    for kind, n in (("a word of 2 or 3 tokens last", (2, 3)), ("a word of 4 tokens or more last", (4, 5, 6))):
        some = list(zip(prompts, goals))[::every]
        out += [(kind, (p[0], f"{p[1]} {w}"), g) for (p, g), w in zip(some, long_words(lm, n, len(some)))]
    return out


def beam_of(lm, slot, allowed):
    "Four texts: the prompt, and with the next likeliest tokens in place of its last."
    left = slot.left
    logprobs = lm.prefill([left[:-1]])[0][0].float().log_softmax(-1).masked_fill(~allowed, -torch.inf)
    others = [v for v in logprobs.topk(8).indices.tolist() if v != left[-1]][:3]
    rows = [left] + [left[:-1] + [v] for v in others]
    logits = lm.prefill(rows)[0].float().log_softmax(-1)
    return [State(lm, r, l, allowed, seed=slot.seed, start=slot.start) for r, l in zip(rows, logits)]


def one_case(lm, encoder, ways, case, k, a):
    "name -> cosine with the mathematics, rank correlation with the exact loss."
    kind, prompt, goal = case
    allowed = allowed_tokens(lm)
    slot = slot_of(lm, prompt, "append", allowed, 1000 + k)
    beam, loss = beam_of(lm, slot, allowed), encoder.text(goal)
    sample = sample_of(slot, 200, 16)
    exact = Term(loss).exact(slot.texts(sample)).numpy()
    out = dict(kind=kind)
    plain, target = Departed(), Departed(map=ways["fitted by the target's count"][0].map)
    for name, (ranker, adapter, _) in ways.items():
        term = Term(loss, WEIGHT, adapter)
        whole = ranker.rank_all(Objective(term, source=lm), beam)[0] if getattr(ranker, "logits", False) else ranker.predict_all(term, beam)[0]
        cos = None
        if isinstance(ranker, Departed):
            g = ranker.gradients(term, beam)
            g = g.sum(0) if ranker.summed else g[0]
            against = (target if "source's count" in name else plain).gradients(Term(loss, WEIGHT, ways["no reversal"][1]), beam)[0]
            cos = F.cosine_similarity(g, against, dim=0).item()
        elif isinstance(ranker, AsPublished):  # by its prediction: E g, so g in the row space of E
            E = lm.embedding_table.detach().float()
            g = torch.linalg.lstsq(E.T @ E + 1e-6 * torch.eye(E.shape[1]), (E.T @ ranker.predict_all(term, beam)[0])[:, None]).solution[:, 0]
            cos = F.cosine_similarity(g, plain.gradients(Term(loss, WEIGHT, ways["no reversal"][1]), beam)[0], dim=0).item()
        out[name] = [None if cos is None else round(cos, 4), round(rank_correlation(whole[sample].numpy(), exact), 4)]
    return out


# --- the searches ------------------------------------------------------------------------------------------------------------------------

def search(lm, encoder, name, ranker, adapter, goal, scope="found"):
    "The objective, fluency over what was found, of the text that a short search finds; all have the same number of texts."
    loss = encoder.text(goal)
    objective = Objective(Term(Fluency(lm, scope=scope)), Term(loss, WEIGHT, adapter))
    start = time.process_time()
    r = AutoDAN(steps=STEPS, beam=BEAM, candidates=CANDIDATES, ranker=ranker, progress=False).minimize(objective, "An image of", seed=SEED)
    given = len(lm.tokenize(["An image of"])[0])
    judge = Objective(Term(lm), Term(loss, WEIGHT))
    value = judge([r.ids], given)
    total, terms = value[0]
    return dict(loss=round(total, 4), similarity=round(1 - list(terms.values())[1], 4), fluency=round(list(terms.values())[0], 3), text=r.text, evaluations=r.evaluations, seconds=round(time.process_time() - start, 2))


def searches(ways):
    "The rankers that are searched with; the last four are there to compare."
    named = {n: (r, t, "found") for n, (r, t, _) in ways.items() if "fitted by" not in n and "prefix included" not in n}
    first = next(iter(named))
    named["fluency over the prefix too"] = named[first][:2] + ("text",)
    named["all together, and fluency over the prefix too"] = named["all together, as published"][:2] + ("text",)
    return named | {"the language model alone": (LM(), named[first][1], "found"), "random": (Random(), named[first][1], "found")}


# --- all of it -----------------------------------------------------------------------------------------------------------------------------

def summary(state, ways):
    "Means with intervals; searches as differences to the mathematics, goal by goal."
    rows, kinds = [], list(dict.fromkeys(c["kind"] for c in state["cases"].values()))
    for name, (_, _, item) in ways.items():
        for kind in kinds:
            mine = [c[name] for c in state["cases"].values() if c["kind"] == kind and name in c]
            if len(mine) < 8: continue
            cosines, ranks = [m[0] for m in mine if m[0] is not None], [m[1] for m in mine]
            row = dict(departure=name, item=item, kind=kind, n=len(mine), spearman=[round(x, 3) for x in interval(ranks)])
            if cosines:
                touched = [x for x in cosines if x < 0.9999]
                row |= dict(cosine=[round(x, 3) for x in interval(cosines)], touched=len(touched), cosine_touched=round(float(np.mean(touched)), 3) if touched else None)
            base = [c[next(iter(ways))][1] for c in state["cases"].values() if c["kind"] == kind and name in c]
            row["spearman_lost"] = [round(x, 3) for x in interval(np.array(base) - ranks)]
            rows.append(row)
    goals, found = state["searches"], []
    names = list(dict.fromkeys(n for g in goals.values() for n in g))
    for name in names:
        both = [(g[name], g[next(iter(ways))]) for g in goals.values() if name in g and next(iter(ways)) in g]
        if len(both) < 8: continue
        take = lambda key: [round(x, 3) for x in interval([x[key] for x, _ in both])]
        found.append(dict(departure=name, n=len(both), objective=take("loss"), worse=[round(x, 3) for x in interval([x["loss"] - y["loss"] for x, y in both])], similarity=take("similarity"), fluency=take("fluency"),
                          evaluations=round(float(np.mean([x["evaluations"] for x, _ in both]))), seconds=round(float(np.median([x["seconds"] for x, _ in both])), 2)))
    return dict(gradients=rows, searches=found)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--short", action="store_true"); p.add_argument("--only", default="", choices=["", "gradients", "search"]); p.add_argument("--goals", type=int, default=24)
    p.add_argument("--redo", default=""); p.add_argument("--default", action="store_true", help="the default ranker too"); p.add_argument("--out", type=Path, default=Path(__file__).parent.parent/"data"/"e6_departures.json")
    a = p.parse_args()
    torch.set_num_threads(1); warnings.simplefilter("ignore")
    kept = cache_dir()/"experiments"/f"e6{'-short' if a.short else ''}.json"; kept.parent.mkdir(parents=True, exist_ok=True)
    state = json.loads(kept.read_text()) if kept.exists() else dict(cases={}, searches={})
    lm, encoder = CausalLM.from_pretrained("smollm2-135m", device="cpu"), TextEncoder.from_pretrained("minilm", device="cpu")
    fit = lambda **options: FuseAdapter.cached(lm, encoder, forms=("text",), **options)
    ways = departures(fit(classes="larger"), fit(classes="larger", ridge=0.0), fit(classes="target"), fit(classes="target", ridge=0.0))
    start = time.process_time()
    if a.only != "search":
        for k, case in enumerate(tqdm(cases(lm, a), desc="gradients", mininterval=20)):
            if str(k) in state["cases"]: continue
            state["cases"][str(k)] = one_case(lm, encoder, ways, case, k, a)
            write_json(kept, state)
    if a.only != "gradients":
        goals = made_up(96)[1][1::4][:2 if a.short else a.goals]
        for name in filter(None, a.redo.split(";")):
            for g in state["searches"].values(): g.pop(name, None)
        named = searches(ways) | ({"ours: the default ranker": (Combined(limit=None), ways["no reversal"][1], "found")} if a.default else {})
        for goal in tqdm(goals, desc="searches", mininterval=20):
            mine = state["searches"].setdefault(goal, {})
            for name, (ranker, adapter, scope) in named.items():
                if name not in mine: mine[name] = search(lm, encoder, name, ranker, adapter, goal, scope)
            write_json(kept, state)
    value = {"made": made([*SEARCH, "agreement", "probes", "autodan"], "smollm2-135m, minilm"), "seed": SEED, "steps": STEPS, "beam": BEAM, "candidates": CANDIDATES, "weight": WEIGHT} | summary(state, ways)
    if a.short: print(json.dumps(state, indent=1)[:6000])
    else: a.out.write_text(json.dumps(value, separators=(",", ":")).replace('{"departure"', '\n{"departure"') + "\n", encoding="utf-8")
    print(f"{time.process_time() - start:.0f} s of processor time")
