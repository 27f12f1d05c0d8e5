"""What MiniLM's embeddings give away, on texts made up for it, beside two baselines at the same number of queries.

    python tests/bench_inversion.py --out data/inversion.json [--take 0,3,15,9] [--queries 2000] [--seconds 60] [--samples 2000]

`--take` says which texts of data/inversion_texts.json; those that are in the file already are kept. It is written after every text.
Sampling from the language model is what takes longest: `--samples` makes that baseline cheaper, and the row says how many it had.
"""
import argparse
import json
import re
import time
from collections import Counter
from pathlib import Path

import torch

from fuse_nb.causal import CausalLM
from fuse_nb.encoders import TextEncoder
from fuse_nb.inversion import Inverter
from fuse_nb.tokens import given_tokens
from machine import made

ROOT = Path(__file__).parent.parent
MODULES = ["attempt", "inversion", "autodan", "combined", "ranking", "search", "slots", "objective", "losses", "encoders", "causal"]
PUBLISHED = [
    dict(system="vec2text", says="92 % of 32-token texts exactly", needs="a model trained for one encoder", data="other data, another encoder",
         source="Morris, Kuleshov, Shmatikov, Rush, EMNLP 2023 (arXiv 2310.06816)"),
    dict(system="ZSInvert", says="token F1 over 50, cosine over 0.90", needs="no training for the encoder; a trained correction model",
         data="other data, other encoders", source="Zhang, Morris, Shmatikov 2025 (arXiv 2504.00147)"),
    dict(system="Zero2Text", says="no training; its figures were not available to us", needs="a language model", data="other data", source="not read by us"),
]


def tokens(text): return re.findall(r"\w+", text.lower())


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


@torch.no_grad()
def lm_alone(by, vector, queries, length, seed=0):
    "The best by the encoder of as many samples of the language model as there are queries; it is even told the length."
    lm, draw, best, began = by.lm, torch.Generator().manual_seed(seed), (-1.0, ""), time.perf_counter()
    opening = given_tokens(lm, by.before)[0]
    banned, done = ~by.allowed, 0
    while done < queries:
        n = min(250, queries - done)
        logits, cache = lm.prefill([opening]*n)
        rows = []
        for _ in range(length):
            p = logits.float().masked_fill(banned[:logits.shape[-1]], float("-inf")).softmax(-1)
            rows.append(torch.multinomial(p, 1, generator=draw)[:, 0].tolist())
            logits, cache = lm.extend(cache, list(range(n)), rows[-1])
        texts = [lm.tokenizer.decode(ids).strip() for ids in zip(*rows)]
        cosines = by.encoder.encode(texts) @ vector
        i = int(cosines.argmax())
        best, done = max(best, (cosines[i].item(), texts[i])), done + n
    return dict(text=best[1], cosine=best[0], queries=done, seconds=time.perf_counter() - began)


def ours(by, vector, a):
    r = by(vector, a.queries, a.seconds, 0)
    return dict(text=r.text, cosine=r.cosine, queries=r.queries, seconds=r.seconds, stopped=r.stopped,
                trace=[[t["queries"], round(t["loss"], 3), round(t["cosine"], 4), t["kind"]] for t in r.trace])


def judged(found, true):
    found.update(f1=round(100*f1(found["text"], true), 1), rouge_l=round(100*rouge_l(found["text"], true), 1), exact=tokens(found["text"]) == tokens(true))
    return {k: round(v, 4) if k == "cosine" else round(v, 1) if k == "seconds" else v for k, v in found.items()}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--take", default="0,3,15,9")
    p.add_argument("--samples", type=int)
    p.add_argument("--queries", type=int, default=2000)
    p.add_argument("--seconds", type=float, default=60.0)
    a = p.parse_args()
    lm, encoder = CausalLM.from_pretrained("smollm2-135m", device="cpu"), TextEncoder.from_pretrained("minilm", device="cpu")
    by, blind = Inverter(encoder, lm), Inverter(encoder, lm, fluency=0.0)
    blind.ranker = by.ranker  # their tables are the same
    by(encoder.encode(["warm"])[0], 256)
    rows = json.loads(a.out.read_text(encoding="utf-8"))["rows"] if a.out.exists() else []
    texts = json.loads((ROOT/"data"/"inversion_texts.json").read_text(encoding="utf-8"))["texts"]
    for t in [texts[int(i)] for i in a.take.split(",")]:
        if any(r["text"] == t["text"] for r in rows): continue
        vector, n = encoder.encode([t["text"]])[0], len(lm.tokenize([t["text"]])[0])
        found = dict(fuse=ours(by, vector, a), encoder_only=ours(blind, vector, a), lm_alone=lm_alone(by, vector, a.samples or a.queries, n))
        rows.append(t | dict(tokens=n) | {k: judged(v, t["text"]) for k, v in found.items()})
        about = dict(made=made(MODULES, "smollm2-135m, minilm"), queries=a.queries, seconds=a.seconds, beam=by.beam, candidates=by.candidates,
                     swaps=by.swaps, weights=dict(similarity=by.similarity, fluency=by.fluency, price=by.price), n=len(rows))
        a.out.write_text(json.dumps(about | dict(published=PUBLISHED, rows=rows), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(t["text"], *(f"\n   {k}: {v['text']}  cosine {v['cosine']:.3f} F1 {v['f1']} {v['seconds']} s" for k, v in rows[-1].items() if isinstance(v, dict)), flush=True)


if __name__ == "__main__":
    main()
