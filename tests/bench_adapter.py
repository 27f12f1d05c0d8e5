"""Figures of chapter 05. `run(device)` times the complete fit SmolLM2 -> MiniLM; `compare()` makes the table of the chapter's choices on held-out words.
`python tests/bench_adapter.py [--device cpu] [--cpu-time] [--compare]` prints; `--compare` also writes data/adapter_comparison.json (some minutes)."""
import argparse, json, resource, sys, time, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from fuse_nb.adapter import FORMS, FuseAdapter, spell
from fuse_nb.models import CausalLM, TextEncoder
from fuse_nb.words import word_list

TARGET_S = 15.0
DATA = Path(__file__).parent.parent/"data"/"adapter_comparison.json"


def models(device="cpu"): return CausalLM.from_pretrained("smollm2-135m", device=device), TextEncoder.from_pretrained("minilm", device=device)


def run(device="cpu", cpu_time=False) -> dict:
    "The complete fit, tokenization included, models loaded: seconds by the clock (or of the processor), and its share of the 15 s that it may take."
    source, target = models(device)
    timer = time.process_time if cpu_time else time.perf_counter
    source.embedding_table, target.embedding_table
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = timer()
    adapter = FuseAdapter.fit(source, target)
    seconds = timer() - start
    start = timer()
    text_only = FuseAdapter.fit(source, target, classes="larger", forms=("text",))
    plain = timer() - start
    row = dict(what="complete fit SmolLM2 -> MiniLM, 40,000 words, l = 1..4, default options", seconds=seconds, ratio=seconds/TARGET_S, target="<= 1 (15 s)",
               r2=adapter.coverage["held_out"]["r2"], peak_additional_gb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/2**20)
    other = dict(what='the same, classes="larger", forms=("text",)', seconds=plain, ratio=plain/TARGET_S, target="<= 1 (15 s)", r2=text_only.coverage["held_out"]["r2"])
    return dict(machine=f"{'processor ' if cpu_time else ''}seconds, {torch.get_num_threads()} threads, torch {torch.__version__}, device {device}", table=[row, other])


VARIANTS = {  # what the chapter compares: name -> options of `fit`
    "paper: by target count, no ridge": dict(classes="target", ridge=0.0, forms=("text",)),
    "by target count": dict(classes="target", forms=("text",)),
    "by larger count, no ridge": dict(classes="larger", ridge=0.0, forms=("text",)),
    "by larger count": dict(classes="larger", forms=("text",)),
    "by larger count, padded in front": dict(classes="larger", forms=("text",), front=True),
    "by larger count, centred": dict(classes="larger", forms=("text",), center=True),
    "pairs": dict(forms=("text",)),
    "by larger count, three spellings": dict(classes="larger"),
    "pairs, three spellings (default)": dict(),
    "default, centred": dict(center=True),
    "default, weight frequency^0.25": dict(weighting=0.25),
    "default, weight frequency^0.5": dict(weighting=0.5),
    "default, weight frequency": dict(weighting=1.0),
}


def flipped(s):
    "The same words with their tokens in reverse order: padding at the end is then padding in front."
    return replace(s, groups={ab: (w, f, S.flip(1), T.flip(1)) for ab, (w, f, S, T) in s.groups.items()})


def compare(device="cpu") -> dict:
    "Held-out R2 (words that neither fit nor ridge has seen) of every variant: words as in a text, by frequency, all spellings, and by class."
    source, target = models(device)
    words, frequencies = word_list(40_000)
    spelled = {forms: spell(source, target, words, frequencies, forms) for forms in (("text",), FORMS)}
    order = np.random.default_rng(0).permutation(len(words))
    test = torch.zeros(len(words), dtype=torch.bool)
    test[order[4000:8000]] = True
    rows = {}
    for name, options in VARIANTS.items():
        options = dict(options)
        forms, turn = options.pop("forms", FORMS), flipped if options.pop("front", False) else (lambda s: s)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = FuseAdapter.fit(source, target, turn(spelled[forms]), **options)
        seconds = time.process_time() - start
        text, every = adapter.score(turn(spelled[FORMS]), test, 0), adapter.score(turn(spelled[FORMS]), test)
        rows[name] = dict(r2=text["r2"], r2_weighted=text["r2_weighted"], r2_forms=every["r2"], megabytes=round(adapter.nbytes/1e6, 1), processor_seconds=round(seconds, 1),
                          by_larger={l: v for l, v in by_larger(adapter, turn(spelled[FORMS]), test).items()}, ridge={l: c.get("ridge") for l, c in adapter.coverage["classes"].items()})
        print(f"{name:36s} {json.dumps(rows[name])}", flush=True)
    return dict(what="SmolLM2 -> MiniLM, 40,000 words of wordfreq, 4,000 of them held out from fit and ridge", rows=rows)


def by_larger(adapter, spelled, test) -> dict:
    "R2 by the larger token count, whatever the adapter's own classes are."
    out = {}
    for l in range(1, 5):
        part = replace(spelled, groups={ab: g for ab, g in spelled.groups.items() if max(ab) == l})
        out[l] = adapter.score(part, test, 0)["r2"]
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--device", default="cpu"); p.add_argument("--cpu-time", action="store_true"); p.add_argument("--compare", action="store_true")
    a = p.parse_args()
    if a.compare: DATA.write_text(json.dumps(compare(a.device), indent=1) + "\n", encoding="utf-8")
    else: json.dump(run(a.device, a.cpu_time), sys.stdout, indent=1)
