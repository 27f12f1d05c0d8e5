"""The choices of chapter 48's adapter against each other on held-out words, its storage forms, and what its fit costs.
`OMP_NUM_THREADS=1 python tests/bench_adapter.py` writes data/adapter_comparison.json (about four minutes of one core); `--words` for fewer words,
`--gemma` for the default between Gemma 3 270M and MiniLM too, whose packages must be there (`fuse-nb models` names them).
Seconds are processor time with one thread (`time.process_time`), so that other work on the machine does not count."""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")            # before torch, numpy and tokenizers are loaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, functools, json, platform, sys, time, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from machine import ADAPTER, made
from fuse_nb import FuseAdapter, fitting, ridge
from fuse_nb.spelling import FORMS, spell
from fuse_nb.causal import CausalLM
from fuse_nb.encoders import TextEncoder
from fuse_nb.words import word_list

PAIRS = dict(classes="pairs", forms=FORMS)
ROWS = {   # name: options of `FuseAdapter.fit`; "forms" picks the spellings
    "paper: by target count, no ridge": dict(classes="target", forms=FORMS[:1], ridge=0.0),
    "by target count": dict(classes="target", forms=FORMS[:1]),
    "by larger count, no ridge": dict(classes="larger", forms=FORMS[:1], ridge=0.0),
    "by larger count": dict(classes="larger", forms=FORMS[:1]),
    "by larger count, centred": dict(classes="larger", forms=FORMS[:1], center=True),
    "pairs": dict(classes="pairs", forms=FORMS[:1]),
    "by target count, three forms": dict(classes="target", forms=FORMS),
    "by larger count, three forms": dict(classes="larger", forms=FORMS),
    "pairs, three forms (default)": PAIRS,
    "default, no ridge for classes or pairs": PAIRS | dict(ridge=0.0),
    "default, centred": PAIRS | dict(center=True),
    "default, weighting 0.25": PAIRS | dict(weighting=0.25),
    "default, weighting 0.5": PAIRS | dict(weighting=0.5),
    "default, weighting 1": PAIRS | dict(weighting=1.0),
    "default, max_tokens 1": PAIRS | dict(max_tokens=1),
    "default, max_tokens 2": PAIRS | dict(max_tokens=2),
    "default, max_tokens 8": PAIRS | dict(max_tokens=8),
}
REVERSE = {"paper: by target count, no ridge": ROWS["paper: by target count, no ridge"], "by target count": ROWS["by target count"],
           "by larger count": ROWS["by larger count"], "pairs": ROWS["pairs"], "pairs, three forms (default)": PAIRS, "default, centred": PAIRS | dict(center=True)}
RANKS = (256, 192, 128, 96, 64, 32)
DEFAULT = "pairs, three forms (default)"


def parts(n, seed=0, holdout=0.1):
    "0: fit, 1: ridge, 2: held out from both, as `fit` draws them."
    order, k, part = np.random.default_rng(seed).permutation(n), round(holdout*n), torch.zeros(n, dtype=torch.long)
    part[order[:k]], part[order[k:2*k]] = 1, 2
    return part


def only(spelled, test): return replace(spelled, groups={ab: g for ab, g in spelled.groups.items() if test(ab)})


def without(spelled, drop):
    "The spellings of the words that are not in `drop`, a mask."
    kept = {ab: tuple(x[~drop[g[0]]] for x in g) for ab, g in spelled.groups.items()}
    return replace(spelled, groups={ab: g for ab, g in kept.items() if len(g[0])})


class Bench:
    "Fits between one pair of models, all judged on the same held-out words in the same spellings about the same mean."
    def __init__(self, source, target, n):
        self.models, (words, f) = (source, target), word_list(n)
        self.spelled = {forms: spell(source, target, words, f, forms) for forms in (FORMS, FORMS[:1])}
        self.held = parts(n) == 2
        rows = [g[3][~self.held[g[0]]].flatten() for g in self.spelled[FORMS].groups.values()]
        self.mean = target.embedding_table.detach()[torch.cat(rows)].float().mean(0)

    def fit(self, forms, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = FuseAdapter.fit(*self.models, self.spelled[forms], **options)
        adapter.mean = self.mean
        return adapter

    def judge(self, adapter):
        score = functools.partial(adapter.score, words=self.held)
        whole, every = score(self.spelled[FORMS], form=0), self.spelled[FORMS]
        return dict(words=whole["words"], r2=whole["r2"], r2_weighted=whole["r2_weighted"], r2_forms=score(every)["r2"], megabytes=round(adapter.nbytes/1e6, 2),
                    by_larger={str(l): score(only(every, lambda ab: max(ab) == l), form=0)["r2"] for l in range(1, 5)},
                    beyond_4=score(only(every, lambda ab: max(ab) > 4), form=0))

    def row(self, name, options):
        start = time.process_time()
        adapter = self.fit(**options)
        seconds = time.process_time() - start
        out = self.judge(adapter) | dict(process_seconds=round(seconds, 2), pairs=len(adapter.pairs), ridge={str(l): r["ridge"] for l, r in adapter.coverage["classes"].items() if "ridge" in r},
                                         classes={str(l): dict(words=r["words"], spellings=r.get("spellings", 0)) for l, r in adapter.coverage["classes"].items()})
        print(f"{name:40s} {out['r2']:8.4f} {out['r2_weighted']:8.4f} {out['r2_forms']:8.4f} {out['by_larger']} {out['megabytes']:6.1f} MB {seconds:6.1f} s", flush=True)
        return adapter, out


def storage(bench, adapter):
    "Megabytes against held-out R2: dtypes, and ranks by size of the tensor or by what matters for the words of the fit."
    words, out = without(bench.spelled[FORMS], bench.held), []
    for kind, rank, dtype, given in [("float32", None, None, None), ("float16", None, torch.float16, None),
                                     *[("rank", r, torch.float16, None) for r in RANKS], *[("rank for words", r, torch.float16, words) for r in RANKS]]:
        small = adapter.compress(rank, dtype, given)
        small.mean = bench.mean
        score = small.score(bench.spelled[FORMS], bench.held, 0)
        out.append(dict(kind=kind, rank=rank, dtype="float32" if dtype is None else "float16", megabytes=round(small.nbytes/1e6, 3), r2=score["r2"], r2_weighted=score["r2_weighted"]))
        print(out[-1], flush=True)
    return out


def stages(source, target, n):
    "Process seconds of one default fit, models loaded, by stage."
    spent, depth, outermost = {}, [], {"word_list": "word list", "spell": "spelling for both tokenizers", "ridge_path": "ridge paths", "shrink": "solving"}
    def timed(name, f):
        @functools.wraps(f)
        def run(*args, **kwargs):
            start = time.process_time(); depth.append(name)
            try: return f(*args, **kwargs)
            finally:
                depth.pop()
                if not depth: spent[name] = spent.get(name, 0.0) + time.process_time() - start
        return run
    places = [(fitting, "word_list"), (fitting, "spell"), (ridge, "ridge_path"), (ridge, "shrink"), (ridge.Plan, "sums"), (FuseAdapter, "_cover")]
    saved = [(owner, k, getattr(owner, k)) for owner, k in places]
    names = outermost | {"sums": "Gram and cross sums", "_cover": "scoring held-out words"}
    try:
        for owner, k, f in saved: setattr(owner, k, timed(names[k], f))
        wall, start = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FuseAdapter.fit(source, target, n)
        total, wall = time.process_time() - start, time.perf_counter() - wall
    finally:
        for owner, k, f in saved: setattr(owner, k, f)
    out = {k: round(v, 2) for k, v in spent.items()}
    return out | {"the rest": round(total - sum(spent.values()), 2), "total": round(total, 2), "wall": round(wall, 2)}


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--words", type=int, default=40_000)
    args.add_argument("--gemma", action="store_true")
    args.add_argument("--out", type=Path, default=Path(__file__).parent.parent/"data/adapter_comparison.json")
    args = args.parse_args()
    torch.set_num_threads(1)
    lm, encoder = CausalLM.from_pretrained("smollm2-135m", device="cpu"), TextEncoder.from_pretrained("minilm", device="cpu")
    n, result = args.words, {}
    time_by_stage = stages(lm, encoder, n)
    print(time_by_stage, flush=True)
    bench = Bench(lm, encoder, n)
    for name, options in ROWS.items():
        adapter, result[name] = bench.row(name, options)
        if name == DEFAULT: kept = adapter
    stored = storage(bench, kept)
    back, reverse = Bench(encoder, lm, n), {}
    for name, options in REVERSE.items(): reverse[name] = back.row(name, options)[1]
    other = {}
    if args.gemma:
        gemma = CausalLM.from_pretrained("gemma3-270m", device="cpu")
        for name, pair in (("gemma3-270m -> minilm", (gemma, encoder)), ("minilm -> gemma3-270m", (encoder, gemma))): other[name] = Bench(*pair, n).row(DEFAULT, PAIRS)[1]
    out = dict(what=f"{n:,} words of wordfreq, {round(n*0.1):,} to choose the ridge on, {round(n*0.1):,} others held out for r2 (as in a text), r2_weighted (by frequency) and r2_forms (all three forms)",
               made=made(ADAPTER, "smollm2-135m, minilm, gemma3-270m"), command=" ".join(["OMP_NUM_THREADS=1 python tests/bench_adapter.py", *sys.argv[1:]]), machine=f"{platform.machine()}, one thread, torch {torch.__version__.split('+')[0]}",
               words=n, held_out=int(bench.held.sum()), rows=result, storage=stored, reverse=reverse, other_pairs=other, process_seconds=time_by_stage)
    part = args.out.with_suffix(".part")
    part.write_text(json.dumps(out, indent=1) + "\n")
    os.replace(part, args.out)


if __name__ == "__main__": main()
