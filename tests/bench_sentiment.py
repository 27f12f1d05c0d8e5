"""Which question tells praise from complaint, and what does it cost? data/sentiment_templates.json.

    pip download --no-deps vaderSentiment==3.3.2                # snippets of film reviews that people have judged (Hutto & Gilbert, ICWSM 2014); nothing of it is kept here
    tar xzf vaderSentiment-3.3.2.tar.gz && tar xzf vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz
    python tests/bench_sentiment.py hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt --lms smollm2-135m gemma3-270m --out data/sentiment_templates.json

Snippets of 20 to 119 characters whose mean rating is above 1 or below -1, of -4 to 4, as many of either kind, drawn with seed 0. `order` is the share of pairs
(praise, complaint) in which the praise has the lower loss of "positive" (0.5 by chance); `right` the share on their own side of the neutral text; intervals by bootstrap.
"""
import argparse
import json
import random
import time
from pathlib import Path

import numpy as np

from machine import made
from fuse_nb.causal import CausalLM
from fuse_nb.losses import ZeroShotLabel

TEMPLATES = [("Review: ", "\nSentiment (positive or negative):"), ("Review: ", "\nSentiment:"), ("Review: ", " Sentiment:"), ("Text: ", "\nSentiment:"), ("", "\nSentiment:")]


def snippets(path, n, seed=0):
    "n of praise and n of complaint."
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="ignore").splitlines()]
    rated = [(float(r[1]), r[2].strip()) for r in rows if len(r) > 2 and 20 <= len(r[2].strip()) < 120]
    draw = random.Random(seed)
    return [draw.sample([t for m, t in rated if sign*m > 1], n) for sign in (1, -1)]


def told(praise, complaint):
    "Order and share on the right side, of losses of either kind, each with a 95 % bootstrap interval."
    draw, neutral = np.random.default_rng(0), np.log(2)
    both = lambda a, b: ((a[:, None] < b).mean() + (a[:, None] == b).mean()/2, ((a < neutral).mean() + (b > neutral).mean())/2)
    again = np.array([both(*(x[draw.integers(len(x), size=len(x))] for x in (praise, complaint))) for _ in range(1000)])
    return {name: [round(float(v), 3) for v in (value, *np.percentile(again[:, i], [2.5, 97.5]))] for i, (name, value) in enumerate(zip(("order", "right"), both(praise, complaint)))}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("snippets", type=Path); p.add_argument("--lms", nargs="+", default=["smollm2-135m"]); p.add_argument("--n", type=int, default=500)
    p.add_argument("--device", default="cpu"); p.add_argument("--out", type=Path, required=True)
    a, rows = p.parse_args(), []
    kinds = snippets(a.snippets, a.n)
    for name in a.lms:
        lm = CausalLM.from_pretrained(name, device=a.device)
        for prefix, suffix in TEMPLATES:
            loss, began = ZeroShotLabel(lm, "positive", prefix=prefix, suffix=suffix), time.process_time()
            found = [np.array(loss.exact([prefix + t + suffix for t in kind]).tolist()) for kind in kinds]
            ms = 1000*(time.process_time() - began)/(2*a.n)
            rows.append(dict(lm=name, prefix=prefix, suffix=suffix, suffix_tokens=len(lm.tokenizer(suffix, add_special_tokens=False)["input_ids"]), n=2*a.n, processor_ms=round(ms, 1), **told(*found)))
            print(rows[-1], flush=True)
    a.out.write_text(json.dumps(dict(made=made(["causal", "families", "losses", "prefixes", "tokens"], ", ".join(a.lms), a.device), snippets="vaderSentiment 3.3.2, movieReviewSnippets_GroundTruth.txt (Hutto & Gilbert 2014)", rows=rows), indent=1) + "\n")


if __name__ == "__main__": main()
