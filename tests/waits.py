"""For what a step waits on a device: `python tests/waits.py` counts on the pretend device and writes data/waits.json.

Copies to the host, `item` and the like are waits, copies to the device uploads; each is counted for the function of fuse_nb that asked for it, in the step
with the most waits of five, the first two left out, of tiny models of random weights: the counts are of the code, not of the weights.
"""
from test_device import counted  # before autograd is used: its threads are counted once
import argparse
import json
import re
from collections import Counter
from pathlib import Path

import torch

from machine import SEARCH, made
from test_models import word_pieces
from test_search import bert, source_of

ROOT = Path(__file__).parent.parent
RUNS = {"combined": "AutoDAN with the default ranker, two terms", "gcg": "GCG, two terms", "pez": "PEZ, two terms", "text": "GCG, one term: a wanted continuation"}


def models():
    torch.manual_seed(0)
    return source_of("gpt2"), bert("pieces", word_pieces()), {l: torch.randn(32, 32, l) for l in (1, 2, 3)}


def worst_step(*run):
    "Waits and uploads of the step with the most of them, by the function that asked."
    return map(by_function, max(counted(*run), key=lambda step: [c.total() for c in step]))


def by_function(counts):
    "`ranking.py:85 rank` -> `ranking.rank`: lines move, names stay."
    found = Counter()
    for line, n in counts.items(): found[re.sub(r"\.py:\d+ ", ".", line)] += n
    return dict(sorted(found.items(), key=lambda kv: (-kv[1], kv[0])))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT/"data"/"waits.json")
    a = p.parse_args()
    parts, runs = models(), []
    for name, what in RUNS.items():
        waits, uploads = worst_step(name, *parts)
        runs.append(dict(run=name, what=what, waits=sum(waits.values()), uploads=sum(uploads.values()), waits_by=waits, uploads_by=uploads))
        print(f"{name:9s} waits {runs[-1]['waits']:2d} {waits}\n          uploads {runs[-1]['uploads']:2d} {uploads}")
    a.out.write_text(json.dumps(dict(made=made(SEARCH + ["autodan", "swaps", "guesses"], "tiny models of random weights", "the pretend device of tests/pretend.py"), runs=runs), indent=1) + "\n")


if __name__ == "__main__": main()
