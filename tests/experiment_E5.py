"""E5: one prompt for two language models. Ten tokens of SmolLM2's after "Story:" that make SmolLM2 and Gemma 3 270M both continue greedily with a given harmless sentence.

    python tests/experiment_E5.py [--texts 300] [--seeds 1] [--goals 10]

Two starts: ten random tokens, and the goal itself, said again and again (its last ten tokens), which may need no search at all.
Ways, on equal budgets of evaluated texts: found jointly by GCG, the second model's gradient through a FuseAdapter; for each model alone (and what it then makes the other
say); jointly by random swaps, without a gradient. A run ends early when its best text makes both models say the goal. Searches read in bfloat16, the verdict in float32.
The result, data/e5_two_models.json, is written after every run; a second call goes on with what is missing.
"""
import argparse, json, os, time
from pathlib import Path

import numpy as np
import torch

from fuse_nb import FuseAdapter
from fuse_nb.agreement import FEWEST, interval
from fuse_nb.causal import CausalLM
from fuse_nb.greedy import is_greedy
from fuse_nb.losses import TargetText
from fuse_nb.objective import Objective, Term
from fuse_nb.swaps import GCG, RandomSearch
from machine import SEARCH, made

ROOT, PREFIX = Path(__file__).parent.parent, "Story:"
GOALS = [" once upon a time", " thank you very much", " happy birthday to you", " the cat sat on the mat", " have a nice day", " two plus two is four", " the sky is blue",
         " the sun rises in the east", " see you tomorrow morning", " bread and butter"]  # chosen before any run
SAID = ("said again and again", "joint, from there", "smollm2 alone, from there", "gemma alone, from there", "no gradient, from there")   # the last ten tokens of the goal, over and over
WAYS = (*SAID, "joint", "smollm2 alone", "gemma alone", "joint, no gradient")                                                   # and from ten random tokens


class Both:
    "Two models of one precision, and what is asked of them."
    def __init__(self, dtype):
        load = lambda name: CausalLM.from_pretrained(name, device="cpu", dtype=dtype)
        self.lms = dict(smollm2=load("smollm2-135m"), gemma=load("gemma3-270m"))

    def terms(self, goal, adapter=None):
        return {n: Term(TargetText(lm, goal), adapter=adapter if n == "gemma" else None, name=n) for n, lm in self.lms.items()}

    def verdict(self, text, goal):
        "Which models say the goal greedily after this text, and their losses."
        terms, source = self.terms(goal), self.lms["smollm2"]
        row = source.tokenize([text])[0]
        says = {n: is_greedy(Objective(t, source=source), t, row, 1) for n, t in terms.items()}
        return says, {n: round(t.loss.exact([text]).item(), 4) for n, t in terms.items()}


def objective(both, way, goal, adapter):
    terms = both.terms(goal, adapter)
    if way.startswith("gemma alone"): return Objective(Term(terms["gemma"].loss, name="gemma"), source=both.lms["gemma"])   # ten tokens of its own
    return Objective(*([terms["smollm2"]] if way.startswith("smollm2 alone") else terms.values()), source=both.lms["smollm2"])


def search(both, way, goal, adapter, seed, texts):
    "One run. Its clock leaves out the looks at what both models say."
    looks, seen = [0.0], {}
    def look(t):
        began = time.process_time()
        if t["text"] and t["text"] not in seen: seen[t["text"]] = both.verdict(t["text"], goal)[0]
        looks[0] += time.process_time() - began
        if t["text"] and all(seen[t["text"]].values()): raise KeyboardInterrupt
    options = dict(steps=1000, length=10, max_evaluations=texts, progress=False, callback=look)
    o = objective(both, way, goal, adapter)
    start = o.source.tokenizer.decode(o.source.tokenizer(goal*10, add_special_tokens=False)["input_ids"][-10:]) if way in SAID else None
    if way == SAID[0]: options.update(steps=1, max_evaluations=1)
    optimizer = RandomSearch(candidates=32, **options) if "no gradient" in way else GCG(**options)
    began = time.process_time()
    r = optimizer.minimize(o, PREFIX, seed=seed, init=start)
    return r, time.process_time() - began - looks[0]


def table(runs):
    "For each way: of how many runs both models say the goal, each alone, mean losses. Intervals (95 %) are over goals, for runs of one goal with other seeds are no other goals; beside the joint search, goal by goal."
    out = {}
    share = lambda way, goal: [all(r["says"].values()) for r in runs if (r["way"], r["goal"]) == (way, goal)]
    within = lambda values: [round(x, 3) for x in interval(values, draws=4000)] if len(values) >= FEWEST else None
    for way in WAYS:
        mine = [r for r in runs if r["way"] == way]
        if not mine: continue
        n, k = len(mine), sum(all(r["says"].values()) for r in mine)
        goals = list(dict.fromkeys(r["goal"] for r in mine))
        shares = [float(np.mean(share(way, g))) for g in goals]
        joint = [x - float(np.mean(other)) for g, x in zip(goals, shares) if (other := share(SAID[1], g))]
        mean = lambda f: round(sum(map(f, mine))/n, 3)
        out[way] = dict(n=n, both=k, share=within(shares), less_joint=within(joint), goals=len({r["goal"] for r in mine if all(r["says"].values())}),
                        smollm2=sum(r["says"]["smollm2"] for r in mine), gemma=sum(r["says"]["gemma"] for r in mine),
                        loss_smollm2=mean(lambda r: r["losses"]["smollm2"]), loss_gemma=mean(lambda r: r["losses"]["gemma"]), texts=mean(lambda r: r["texts"]), seconds=mean(lambda r: r["seconds"]))
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--texts", type=int, default=300); p.add_argument("--seeds", type=int, default=1); p.add_argument("--goals", type=int, default=10); p.add_argument("--near", action="store_true", help="only from the goal")
    p.add_argument("--short", action="store_true", help="two goals, 100 texts, to data/e5_short.json"); p.add_argument("--out", type=Path, default=ROOT/"data"/"e5_two_models.json")
    a = p.parse_args()
    if a.short: a.texts, a.goals, a.out = 100, 2, ROOT/"data"/"e5_short.json"
    torch.set_num_threads(1)
    task = dict(prefix=PREFIX, length=10, texts=a.texts, search_dtype="bfloat16", verdict_dtype="float32", goals=GOALS)
    out = json.loads(a.out.read_text()) if a.out.exists() else {}
    if {k: out.get(k) for k in task} != task: out = dict(task, runs=[])
    both, judge = Both(torch.bfloat16), Both(torch.float32)
    adapter = FuseAdapter.cached(*both.lms.values())
    for seed in range(a.seeds):
        for ways in (SAID, WAYS[len(SAID):])[:1 if a.near else 2]:
            for goal, way in ((g, w) for g in GOALS[:a.goals] for w in ways):
                if any((r["way"], r["goal"], r["seed"]) == (way, goal, seed) for r in out["runs"]): continue
                r, seconds = search(both, way, goal, adapter, seed, a.texts)
                says, losses = judge.verdict(r.text, goal)
                out["runs"].append(dict(way=way, goal=goal, seed=seed, text=r.text, says=says, losses=losses, texts=r.evaluations, seconds=round(seconds, 1), stopped=r.stopped))
                print(out["runs"][-1], flush=True)
                out["table"] = table(out["runs"])
                out = {"made": made([*SEARCH, "swaps", "guesses", "greedy"], "smollm2-135m, gemma3-270m")} | {k: v for k, v in out.items() if k != "made"}
                head, runs = json.dumps({k: v for k, v in out.items() if k != "runs"}, indent=1), ",\n".join(json.dumps(r) for r in out["runs"])
                part = a.out.with_suffix(".part")
                part.write_text(f'{head[:-2]},\n "runs": [\n{runs}\n ]\n}}\n'); os.replace(part, a.out)
    print(json.dumps(out["table"], indent=1))
