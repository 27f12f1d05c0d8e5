"""Embedding inversion: find a text again from its MiniLM embedding alone. Writes data/inversion.json.

    python tests/bench_inversion.py --out data/inversion.json
"""
import argparse, json, re, time
from pathlib import Path

from tqdm import tqdm

from fuse_nb.fitting import FuseAdapter
from fuse_nb.causal import CausalLM
from fuse_nb.encoders import TextEncoder
from fuse_nb.objective import Objective, Term
from fuse_nb.autodan import AutoDAN

from machine import machine

SENTENCES = ["The old bridge over the river was closed for repairs.", "She sold her bicycle to pay for the concert tickets.", "Heavy rain flooded the streets of the village last night.",
             "My brother plays the violin in a small orchestra.", "Scientists found water under the ice of a distant moon.", "The bakery opens at six and smells of fresh bread.",
             "A black cat slept on the warm hood of the car.", "The court rejected the appeal of the former minister.", "We planted tomatoes and beans behind the school.", "He forgot his passport and missed the flight to Madrid."]
COMMON = set("a an the of in on at to for and was is her his my we he she it last over under behind from with".split())


def words(text): return set(re.findall(r"[a-z]+", text.lower())) - COMMON


p = argparse.ArgumentParser()
p.add_argument("--out", required=True, type=Path); p.add_argument("--device", default="cpu"); p.add_argument("--limit", type=int)
a = p.parse_args()
lm, encoder = CausalLM.from_pretrained("smollm2-135m", device=a.device), TextEncoder.from_pretrained("minilm", device=a.device)
adapter, rows = FuseAdapter.cached(lm, encoder), []
settings = dict(steps=14, beam=8, candidates=32)
for sentence in tqdm(SENTENCES[:a.limit]):
    row = dict(sentence=sentence)
    for ranker in ("combined", "lm"):
        goal = Term(encoder.text(sentence), 40.0, adapter, name="similarity")
        s = settings if ranker == "combined" else {**settings, "candidates": settings["candidates"] + 16}     # as many texts as the default evaluates
        r = AutoDAN(ranker=ranker, progress=False, **s).minimize(Objective(Term(lm, 0.5), goal), prefix="\n", seed=0)
        row[ranker] = dict(text=r.text.strip(), cosine=round(1 - r.terms["similarity"], 4), words=round(len(words(sentence) & words(r.text))/len(words(sentence)), 3), evaluations=r.evaluations, seconds=round(r.seconds, 1))
    rows.append(row)
a.out.write_text(json.dumps(dict(models="smollm2-135m, minilm", objective="0.5 fluency + 40 (1 - cosine)", **settings, date=time.strftime("%Y-%m-%d"),
                                 machine=machine(a.device), rows=rows), indent=1))
