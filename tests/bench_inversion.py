"""What MiniLM's embeddings give away, on texts made up for it, beside four baselines at the same number of queries.

    python tests/bench_inversion.py run --rows ROWS.jsonl [--split held-out] [--take 96] [--systems fuse,random,...] [--queries 2000]
    python tests/bench_inversion.py defend --rows DEFENCES.jsonl [--split dev] [--take 6] [--queries 500]
    python tests/bench_inversion.py report --rows ROWS.jsonl [--defences DEFENCES.jsonl] --out data/inversion.json

A row of ROWS is a text and a system, on disk before the next one is begun: a run that is started again goes on where it stopped.
A file of rows that is not there begins with those of data/inversion.json. Texts are taken in turns of kind and length, so that the first n of them are balanced for every n.
"""
import argparse
import json
import random
import re
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fuse_nb.agreement import FEWEST, interval
from fuse_nb.causal import CausalLM
from fuse_nb.encoders import TextEncoder
from fuse_nb.inversion import Inverter
from fuse_nb.metrics import bleu_row, bootstrap, pooled
from fuse_nb.runlog import RunLog
from fuse_nb.tokens import given_tokens, token_strings
from machine import made

ROOT = Path(__file__).parent.parent
MODULES = ["residual", "attempt", "proposals", "repairs", "inversion", "autodan", "combined", "ranking", "search", "slots", "objective", "losses", "encoders", "causal"]
SYSTEMS = {
    "fuse": "the search of lesson 71",
    "adapter": "tokens proposed by the ranker, with gradients through the adapter (proposer ranker: the search of the day before)",
    "encoder_only": "the search of lesson 71 without the language model: no fluency, words put in at random places",
    "random": "random words put in, exchanged, moved and left out; what comes nearer is kept",
    "lm_alone": "samples of the language model, told the length; the same samples for all texts",
}
PUBLISHED = [
    dict(system="vec2text", says="92 % of 32-token texts exactly", needs="a model trained for one encoder", data="other data, another encoder",
         source="Morris, Kuleshov, Shmatikov, Rush, EMNLP 2023 (arXiv 2310.06816)"),
    dict(system="ZSInvert", says="token F1 over 50, cosine over 0.90", needs="no training for the encoder; a trained correction model",
         data="other data, other encoders", source="Zhang, Morris, Shmatikov 2025 (arXiv 2504.00147)"),
    dict(system="Zero2Text", says="no training; its figures were not available to us", needs="a language model", data="other data", source="not read by us"),
]
# words that say little by themselves; every other word of a text counts as content
FUNCTION = set("""a an the this that these those and or but if than as while when where who whom whose which what why how of to in on at by for from with without
into out up down over under above below behind beside between against around about along after before until since near next not no nor so too very only
i you he she it we they me him her us them my your his its our their one ones some any each every all few more most much many several other another
is am are was were be been being do does did done have has had having can could will would shall should may might must there here then now also even again
mr mrs dr""".split())


# ---- measures: of one found text, all in percent but the cosine

def tokens(text): return re.findall(r"\w+", re.sub(r"(?<=\d),(?=\d)", "", text.lower()))


def f1(found, true):
    "Harmonic mean of precision and recall over words, as multisets."
    a, b = Counter(tokens(found)), Counter(tokens(true))
    shared = sum((a & b).values())
    return 2*shared/(a.total() + b.total()) if shared else 0.0


def rouge_l(found, true):
    "F-measure of the longest common subsequence of words."
    a, b = tokens(found), tokens(true)
    row = [0]*(len(b) + 1)
    for x in a: row = _next(row, x, b)
    return 2*row[-1]/(len(a) + len(b)) if row[-1] else 0.0


def _next(row, x, b):
    new = [0]
    for j, y in enumerate(b): new.append(row[j] + 1 if x == y else max(row[j + 1], new[j]))
    return new


def recovered(found, wanted):
    "The share of these words that stand in the text that was found, each as often as it is wanted; None for no words."
    want = Counter(wanted)
    return (want & Counter(tokens(found))).total()/want.total() if want else None


def judged(found, t):
    "Every measure of one found text."
    true = t["text"]
    names = [w for name in t.get("names") or [] for w in tokens(name)]
    content = [w for w in tokens(true) if w not in FUNCTION]
    shares = dict(f1=f1(found, true), rouge_l=rouge_l(found, true), exact=float(tokens(found) == tokens(true)),
                  content=recovered(found, content), names=recovered(found, names))
    return {k: None if v is None else round(100*v, 2) for k, v in shares.items()}


MEASURES = ["cosine", "f1", "rouge_l", "exact", "content", "names"]


def mean_of(values, digits):
    "Mean and 95 % bootstrap interval over texts; too few have no interval."
    if not values: return None
    if len(values) < FEWEST: return dict(mean=round(float(np.mean(values)), digits), n=len(values))
    mean, low, high = (round(x, digits) for x in interval(values))
    return dict(mean=mean, low=low, high=high, n=len(values))


def summary(rows):
    "The measures of some rows of one system; BLEU-4 is of the whole set, from summed counts."
    out = {m: mean_of([r[m] for r in rows if r[m] is not None], 4 if m == "cosine" else 1) for m in MEASURES}
    counts = np.array([bleu_row(" ".join(tokens(r["found"])), [" ".join(tokens(r["text"]))]) for r in rows], float)
    out["bleu"] = dict(mean=round(100*float(pooled("Bleu_4", counts.sum(0), len(rows))), 1), n=len(rows))
    if len(rows) >= FEWEST: out["bleu"]["low"], out["bleu"]["high"] = (round(100*x, 1) for x in bootstrap("Bleu_4", counts))
    spent = dict(queries=max(r["queries"] for r in rows), cpu=round(float(np.median([r["cpu"] for r in rows])), 1))
    return dict(n=len(rows), **out, most_queries=spent["queries"], median_cpu=spent["cpu"])


# ---- systems: each (texts' vector, its tokens, models, budget) -> found text and what it cost

@torch.no_grad()
def samples(lm, before, allowed, count, length, seed=0):
    "Token rows (count, length) drawn from the language model."
    draw, opening, found = torch.Generator().manual_seed(seed), given_tokens(lm, before)[0], []
    for start in range(0, count, 100):
        n = min(100, count - start)
        logits, cache = lm.prefill([opening]*n)
        rows = []
        for _ in range(length):
            p = logits.float().masked_fill(~allowed[:logits.shape[-1]], float("-inf")).softmax(-1)
            rows.append(torch.multinomial(p, 1, generator=draw)[:, 0].tolist())
            logits, cache = lm.extend(cache, list(range(n)), rows[-1])
        found += zip(*rows)
    return [list(r) for r in found]


class Systems:
    "The models, and every way to find a text from a vector."

    def __init__(self, queries, seconds):
        self.lm, self.encoder = CausalLM.from_pretrained("smollm2-135m", device="cpu"), TextEncoder.from_pretrained("minilm", device="cpu")
        self.queries, self.seconds, self.drawn, self.read = queries, seconds, {}, {}
        self.by = Inverter(self.encoder, self.lm)
        self.blind = Inverter(self.encoder, self.lm, ranker=self.by.ranker, fluency=0.0)
        self.ranked = Inverter(self.encoder, self.lm, ranker=self.by.ranker, proposer="ranker", candidates=16, swaps=8)

    def prepare(self, name):
        "What is made once for all vectors is no part of any row's time."
        way = dict(fuse=self.by, encoder_only=self.blind, adapter=self.ranked).get(name)
        if way: way.prepare()

    def fuse(self, vector, size, by=None):
        r = (by or self.by)(vector, self.queries, self.seconds, 0)
        return dict(found=r.text, queries=r.queries, stopped=r.stopped)

    def encoder_only(self, vector, size): return self.fuse(vector, size, self.blind)

    def adapter(self, vector, size): return self.fuse(vector, size, self.ranked)

    def lm_alone(self, vector, size):
        "The best of as many samples as there are queries, cut to the length that it is told; drawn and read once for all texts of a length."
        if not self.drawn: self.drawn = {32: samples(self.lm, self.by.before, self.by.allowed, self.queries, 32)}
        if size not in self.read:
            texts = [self.lm.tokenizer.decode(r[:size]).strip() for r in self.drawn[32]]
            self.read[size] = texts, self.encoder.encode(texts)
        texts, vectors = self.read[size]
        return dict(found=texts[int((vectors @ vector).argmax())], queries=len(texts))

    def random(self, vector, size, price=0.005, at_once=16):
        "Climbing by random changes; a token costs what it costs in the search."
        draw = random.Random(0)
        strings = token_strings(self.lm)
        words = [strings[i].strip() for i in self.by.allowed.nonzero().flatten().tolist() if strings[i][:1].isspace() and strings[i].strip()]
        best, spent = (float("inf"), ["a"]), 0
        while spent < self.queries:
            tried = [changed(best[1], words, draw) for _ in range(min(at_once, self.queries - spent))]
            spent += len(tried)
            losses = 1 - self.encoder.encode([" ".join(t) for t in tried]) @ vector
            best = min(best, *((loss + price*len(t), t) for loss, t in zip(losses.tolist(), tried)))
        return dict(found=" ".join(best[1]), queries=spent)


def changed(words, all_words, draw):
    "One random change: a word put in, exchanged, moved, or left out."
    new, kind = list(words), draw.choice("insert replace move drop".split())
    if kind == "insert": new.insert(draw.randint(0, len(new)), draw.choice(all_words))
    if kind == "replace": new[draw.randrange(len(new))] = draw.choice(all_words)
    if kind == "move": new.insert(draw.randrange(len(new)), new.pop(draw.randrange(len(new))))
    if kind == "drop" and len(new) > 1: new.pop(draw.randrange(len(new)))
    return new


# ---- the commands

def in_turns(split):
    "The texts of a split, one of each kind and length after the other."
    texts, cells = json.loads((ROOT/"data"/"inversion_texts.json").read_text(encoding="utf-8"))["texts"], Counter()
    places = []
    for i, t in enumerate(texts):
        cell = t["kind"], t["size"]
        if t["split"] == split:
            places.append((cells[cell], i, t))
            cells[cell] += 1
    return [t for _, _, t in sorted(places, key=lambda p: p[:2])]


def committed(queries):
    "The rows of data/inversion.json, as a run writes them: where there is no file of rows yet, a run goes on from these."
    held = json.loads((ROOT/"data"/"inversion.json").read_text(encoding="utf-8"))
    if held.get("queries") != queries or "table" not in held: return []
    texts = {t["text"]: t for t in in_turns("held-out") + in_turns("dev")}
    return [dict(id=f"{r['system']}: {r['text']}", **r | texts[r["text"]], queries_allowed=queries) for r in held["rows"]]


def run(a):
    log, systems = RunLog(a.rows, dict(system=str, text=str)), Systems(a.queries, a.seconds)
    if not a.rows.exists(): log.write(committed(a.queries))
    done = log.read()
    if log.damaged: log.write(done)
    if any(r["queries_allowed"] != a.queries for r in done): raise SystemExit(f"{a.rows} was made with another budget")
    done = {r["id"] for r in done}
    for t in in_turns(a.split)[a.first:a.take]:
        for name in a.systems.split(","):
            mark = f"{name}: {t['text']}"
            if mark in done: continue
            systems.prepare(name)
            vector = systems.encoder.encode([t["text"]])[0]
            began = time.perf_counter(), time.process_time()
            row = getattr(systems, name)(vector, t["size"])
            row |= dict(seconds=time.perf_counter() - began[0], cpu=time.process_time() - began[1])
            cosine = (systems.encoder.encode([row["found"]])[0] @ vector).item()
            log.append(dict(id=mark, system=name, **t, **row, queries_allowed=a.queries, cosine=round(cosine, 4)))
            print(f"{name:12s} {t['size']:2d} {cosine:.3f} F1 {100*f1(row['found'], t['text']):3.0f} {row['cpu']:5.1f} s  {t['text']}\n   {row['found']}", flush=True)


# ---- defences: what is stored in place of a vector, and what that costs whoever searches among vectors

def noisy(e, level, seed):
    "A vector and a random direction of length `level`, of length 1 together."
    direction = torch.randn(e.shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(e + level*direction/direction.norm(), dim=0)


def int8(e, level, seed): return torch.nn.functional.normalize((e/e.abs().max()*127).round(), dim=0)


def fewer(e, level, seed):
    "The first `level` numbers; whoever attacks puts zeros in the place of the others."
    return torch.nn.functional.normalize(torch.cat([e[:level], torch.zeros(len(e) - level)]), dim=0)


DEFENCES = {"none": (noisy, 0.0), "noise 0.5": (noisy, 0.5), "noise 1": (noisy, 1.0), "noise 2": (noisy, 2.0), "int8": (int8, 0),
            "32 numbers": (fewer, 32)}


def retrieval(encoder, seeds=5):
    "For each defence: how often the first half of a text finds the whole one first among all texts, and the mean of 1/rank."
    texts = [t["text"] for split in ("held-out", "dev") for t in in_turns(split)]
    halves = encoder.encode([" ".join(t.split()[:len(t.split())//2]) for t in texts])
    whole, out = encoder.encode(texts), {}
    for name, (defend, level) in DEFENCES.items():
        ranks = []
        for seed in range(seeds if name.startswith("noise") else 1):
            stored = torch.stack([defend(e, level, 1000*seed + i) for i, e in enumerate(whole)])
            scores = halves @ stored.T
            ranks += (1 + (scores > scores.diag()[:, None]).sum(1)).tolist()
        out[name] = dict(n=len(texts), first=round(100*float(np.mean([r == 1 for r in ranks])), 1), reciprocal=round(100*float(np.mean([1/r for r in ranks])), 1))
    return out


def defend(a):
    log, systems = RunLog(a.rows, dict(system=str, text=str)), Systems(a.queries, a.seconds)
    done = {r["id"] for r in log.read()}
    systems.by.prepare()
    for i, t in enumerate([t for t in in_turns(a.split) if t["size"] < 32][:a.take]):
        for name, (change, level) in DEFENCES.items():
            mark = f"{name}: {t['text']}"
            if mark in done: continue
            vector = systems.encoder.encode([t["text"]])[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no text comes near is what a defence is for
                row = systems.fuse(change(vector, level, i), t["size"])
            cosine = (systems.encoder.encode([row["found"]])[0] @ vector).item()
            log.append(dict(id=mark, system=name, **t, **row, queries_allowed=a.queries, cosine=round(cosine, 4)))
            print(f"{name:12s} {t['size']:2d} {cosine:.3f} F1 {100*f1(row['found'], t['text']):3.0f}  {t['text']}\n   {row['found']}", flush=True)


def defended(path, encoder):
    "Given away and kept, for each defence."
    rows, kept, out = [r | judged(r["found"], r) for r in RunLog(path, dict(system=str, text=str)).read()], retrieval(encoder), []
    whole = [t for t, n in Counter(r["text"] for r in rows).items() if n == len(DEFENCES)]  # of texts that had them all
    for name in DEFENCES:
        mine = [r for r in rows if r["system"] == name and r["text"] in whole]
        if mine: out.append(dict(defence=name, texts=len(mine), queries=mine[0]["queries_allowed"], cosine=mean_of([r["cosine"] for r in mine], 4), f1=mean_of([r["f1"] for r in mine], 1), retrieval=kept[name]))
    return out


def grouped(rows):
    "The summary of every system, over all texts, by length and by kind."
    out = {}
    for name in SYSTEMS:
        mine = [r for r in rows if r["system"] == name]
        if not mine: continue
        groups = {"all": mine} | {str(s): [r for r in mine if r["size"] == s] for s in (8, 16, 32)}
        groups |= {k: [r for r in mine if r["kind"] == k] for k in ("caption", "question", "named")}
        out[name] = {g: summary(some) for g, some in groups.items() if some}
    return out


def beside(rows, measure):
    "Our search less each baseline, on the texts that both have."
    out, ours = {}, {r["text"]: r[measure] for r in rows if r["system"] == "fuse"}
    for name in SYSTEMS:
        both = [ours[r["text"]] - r[measure] for r in rows if r["system"] == name and r["text"] in ours]
        if name != "fuse" and both: out[name] = mean_of(both, 4 if measure == "cosine" else 1)
    return out


def report(a):
    rows = [r | judged(r["found"], r) for r in RunLog(a.rows, dict(system=str, text=str)).read()]
    kept = "system split kind size tokens text found cosine queries cpu stopped".split() + MEASURES[1:]
    rows = [{k: round(v, 1) if k == "cpu" else v for k in kept if (v := r.get(k)) is not None} for r in rows]
    for r in rows: r.setdefault("names", None)
    out = dict(made=made(MODULES, "smollm2-135m, minilm"), about="percent, but for cosines; intervals are 95 % bootstrap intervals over texts; BLEU is BLEU-4 of the set",
               systems={k: v for k, v in SYSTEMS.items() if any(r["system"] == k for r in rows)}, queries=a.queries, texts=len({r["text"] for r in rows}), table=grouped(rows),
               ours_less=dict(cosine=beside(rows, "cosine"), f1=beside(rows, "f1")), published=PUBLISHED)
    if a.defences: out["defences"] = defended(a.defences, TextEncoder.from_pretrained("minilm", device="cpu"))
    lines = ",\n".join("  " + json.dumps(r, ensure_ascii=False) for r in rows)
    text = json.dumps(out, indent=1, ensure_ascii=False)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n"
    Path(a.out).write_text(text, encoding="utf-8")
    for name, groups in out["table"].items():
        for g, s in groups.items():
            print(f"{name:12s} {g:9s} n {s['n']:3d} " + "  ".join(f"{m} {s[m]['mean']}" for m in [*MEASURES, "bleu"] if s[m]) + f"  {s['median_cpu']} s")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("command", choices=["run", "defend", "report"])
    p.add_argument("--rows", required=True, type=Path)
    p.add_argument("--defences")
    p.add_argument("--out", default=ROOT/"data"/"inversion.json")
    p.add_argument("--split", default="held-out")
    p.add_argument("--systems", default=",".join(SYSTEMS))
    p.add_argument("--first", type=int, default=0, help="which text in turn is the first: for several processes, each with its own ROWS")
    p.add_argument("--take", type=int, default=96, help="and which is the first that is left out")
    p.add_argument("--queries", type=int, default=2000)
    p.add_argument("--seconds", type=float, default=2000.0)
    a = p.parse_args()
    dict(run=run, defend=defend, report=report)[a.command](a)


if __name__ == "__main__":
    main()
