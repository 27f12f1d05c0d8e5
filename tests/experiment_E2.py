"""E2, what a ranking buys in captions: each method on the same photographs at three budgets of exactly evaluated texts.

    python tests/experiment_E2.py --images DIR --references FILE [--limit N] [--budgets 8,24,64] [--methods lm,combined] [--short]

A budget is the number of texts evaluated for each kept text and step, words that a ranker tries included. Every run is kept in
out/experiment_E2.jsonl as it ends, and a second call goes on from there; data/e2_captions.json holds the scores. Without --images it has
nothing to measure and says so: the photographs of MS-COCO are not ours to give away.
"""
import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fuse_nb.agreement import FEWEST, interval
from fuse_nb.autodan import AutoDAN
from fuse_nb.captioning import Captioner
from fuse_nb.combined import Combined
from fuse_nb.datasets import read_references
from fuse_nb.ranking import AsPublished, Fuse, Vocabulary
from fuse_nb.results import compare_values
from fuse_nb.scoring import score_report
from machine import SEARCH, code_hash, made

ROOT = Path(__file__).parent.parent
MODULES = SEARCH + ["autodan", "captioning"]
STEPS, BEAM = 12, 2
SECONDS = (3.5, 4.5, 6.0)  # processor time of a caption, for comparisons at equal time
# name -> the ranker, and how many of a budget it spends on words that it tries
METHODS = {
    "random": lambda budget: ("random", 0),
    "lm": lambda budget: ("lm", 0),
    "as published": lambda budget: (AsPublished(), 0),
    "fuse 1": lambda budget: (Fuse(1), 1),
    "fuse 16": lambda budget: (Fuse(16), 16),
    "vocabulary 16": lambda budget: (Vocabulary(16), 16),
    "words": lambda budget: ("words", 0),
    "surrogate": lambda budget: ("surrogate", 0),
    "combined": lambda budget: (Combined(8, 8, 4), 4) if budget < 16 else (Combined(), 8),
}


def one(captioner, photo, method, budget, seed):
    "A caption, and what it cost."
    ranker, tried = METHODS[method](budget)
    start = time.process_time()
    search = AutoDAN(steps=STEPS, beam=BEAM, candidates=budget - tried, ranker=ranker, end=".", progress=False)
    r = search.minimize(captioner.objective(photo), captioner.prefix, seed=seed)
    return dict(loss=round(r.loss, 5), image=round(1 - r.terms["image"], 4), evaluations=r.evaluations,
                seconds=round(time.process_time() - start, 2), text=r.text.strip())


def measure(photos, methods, budgets, log, as_is=False, seed=0):
    "All runs that are wanted, those on file among them; each is written as it ends."
    code = code_hash(MODULES)
    kept = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["photo"], r["method"], r["budget"]): r for r in kept if r["code"] == code}
    wanted = [(i, m, b) for b in budgets for i in photos for m in methods if METHODS[m](b)[1] < b]
    if as_is:
        whole = {(i, b) for i in photos for b in budgets if all((i, m, b) in done for m in methods if METHODS[m](b)[1] < b)}
        return [done[w] for w in wanted if (w[0], w[2]) in whole]
    captioner, log = None, log.open("a")
    for i, method, budget in tqdm([w for w in wanted if w not in done], unit="caption"):
        captioner = captioner or Captioner.from_pretrained(device="cpu", progress=False)
        row = dict(photo=i, method=method, budget=budget, code=code) | one(captioner, photos[i], method, budget, seed)
        log.write(json.dumps(row) + "\n")
        log.flush()
        done[i, method, budget] = row
    return [done[w] for w in wanted]


def ends(values):
    "The ends of the bootstrap interval (95 %) of a mean over photographs; too few have none."
    return [round(x, 4) for x in interval(values, draws=4000)[1:]] if len(values) >= FEWEST else None


def paired(loss, others):
    "The mean difference of the objective, photograph by photograph, with its interval; None where no photograph has both."
    other = {r["photo"]: r["loss"] for r in others if r["photo"] in loss}
    if not other: return None
    against = compare_values({k: v for k, v in loss.items() if k in other}, other)
    return {k: round(against[k], 4) for k in ("difference", "low", "high", "p")}


def summary(rows, references):
    "One row for a method and a budget: scores, means, and the objective against `lm` and `words` photograph by photograph."
    groups, out = defaultdict(list), []
    for r in rows: groups[r["method"], r["budget"]].append(r)
    for (method, budget), mine in groups.items():
        report = score_report({r["photo"]: r["text"] for r in mine}, {r["photo"]: references[r["photo"]] for r in mine}, metrics=["METEOR", "CIDEr"])
        loss = {r["photo"]: r["loss"] for r in mine}
        row = dict(method=method, budget=budget, n=len(mine), objective=round(float(np.mean(list(loss.values()))), 4), objective_interval=ends(list(loss.values())))
        row |= {k: round(float(np.mean([r[k] for r in mine])), 4) for k in ("image", "evaluations", "seconds")}
        for metric in ("METEOR", "CIDEr"):
            row[metric] = round(100*report.scores[metric], 2)
            row[metric + "_interval"] = [round(100*x, 2) for x in report.intervals[metric][:2]]
        row |= {f"against_{base}": paired(loss, groups[base, budget]) for base in ("lm", "words") if method != base}
        out.append(row)
    return out


def at_seconds(rows, seconds):
    "photo -> the objective of one method in this much processor time: between the two budgets whose mean times lie around it, straight in the time's logarithm; None outside."
    budgets = sorted({r["budget"] for r in rows})
    times = [np.log(np.mean([r["seconds"] for r in rows if r["budget"] == b])) for b in budgets]
    if not times[0] <= np.log(seconds) <= times[-1]: return None
    share = [np.interp(np.log(seconds), times, row) for row in np.eye(len(budgets))]
    loss = {(r["photo"], r["budget"]): r["loss"] for r in rows}
    return {i: sum(w * loss[i, b] for w, b in zip(share, budgets)) for i in {r["photo"] for r in rows}}


def in_equal_time(rows):
    "A row for a method and a time, against `lm` and `words` in the same time."
    out = []
    for seconds in SECONDS:
        found = {m: at_seconds([r for r in rows if r["method"] == m], seconds) for m in METHODS if any(r["method"] == m for r in rows)}
        as_rows = {m: [dict(photo=i, loss=x) for i, x in (v or {}).items()] for m, v in found.items()}
        for method, loss in found.items():
            if loss is None: continue
            row = dict(method=method, seconds=seconds, n=len(loss), objective=round(float(np.mean(list(loss.values()))), 4))
            out.append(row | {f"against_{base}": paired(loss, as_rows[base]) for base in ("lm", "words") if method != base})
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", type=Path)
    p.add_argument("--references", type=Path)
    p.add_argument("--limit", type=int)
    p.add_argument("--budgets", default="8,24,64")
    p.add_argument("--methods", default=",".join(METHODS))
    p.add_argument("--log", type=Path, default=ROOT/"out"/"experiment_E2.jsonl")
    p.add_argument("--out", type=Path, default=ROOT/"data"/"e2_captions.json")
    p.add_argument("--about", default="the 32 photographs of MS-COCO's Karpathy test split that demonstrations of public repositories show: no random sample")
    p.add_argument("--as-is", action="store_true", help="score what is on file, photographs that every method has; run nothing")
    p.add_argument("--short", action="store_true", help="four photographs, one budget")
    a = p.parse_args()
    if a.images is None: return print("E2 needs --images DIR --references FILE (photographs with human captions): nothing measured, data/e2_captions.json is kept")
    references = read_references(a.references)
    found = {f.stem: f for f in sorted(a.images.iterdir())}
    photos = {i: next(f for s, f in found.items() if s.endswith(f"{int(i):012d}")) for i in list(references)[:4 if a.short else a.limit]}
    a.log.parent.mkdir(exist_ok=True)
    budgets = [24] if a.short else [int(b) for b in a.budgets.split(",")]
    rows = measure(photos, a.methods.split(","), budgets, a.log, a.as_is)
    data = dict(made=made(MODULES, "smollm2-135m, imagenet-minilm"), about=a.about, steps=STEPS, beam=BEAM, seed=0, rows=summary(rows, references), in_equal_time=in_equal_time(rows))
    if not a.short: a.out.write_text(json.dumps(data, indent=1) + "\n")
    else: print(json.dumps(data["rows"], indent=1))


if __name__ == "__main__": main()
