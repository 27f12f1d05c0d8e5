"""Captions of the six photographs of scikit-image and scikit-learn that hold an object of ImageNet, as they are and with two sentiments: data/captions_six.json.
The sentiment is judged by Gemma 3 270M, which is in no objective here, where it is installed.

    python tests/six_photographs.py --out data/captions_six.json
"""
import argparse, json, time
from pathlib import Path

import skimage.data, sklearn.datasets, torch
from tqdm import tqdm

from fuse_nb.captioning import Captioner
from fuse_nb.metrics import sentiment_accuracy
from fuse_nb.store import installed
from fuse_nb.causal import CausalLM
from fuse_nb.losses import ZeroShotLabel
from fuse_nb.autodan import AutoDAN
from fuse_nb.combined import Combined

from machine import SEARCH, machine, made

SIX = {n: Path(skimage.data.__file__).parent/n for n in ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")}
SIX |= {n: Path(sklearn.datasets.__file__).parent/"images"/n for n in ("china.jpg", "flower.jpg")}

p = argparse.ArgumentParser()
p.add_argument("--out", required=True, type=Path); p.add_argument("--device", default="cpu")
a = p.parse_args()
plain, rows = Captioner.from_pretrained(device=a.device, progress=False), []
small = dict(steps=12, beam=2, candidates=8, end=".", progress=False)
mood = {s: Captioner(plain.lm, plain.image_model, plain.adapter, AutoDAN(ranker=Combined(8, 8), **small), sentiment=s) for s in ("positive", "negative")}
for name, photo in tqdm(SIX.items()):
    row = dict(photo=name)
    for kind, captioner in dict(plain=plain, **mood).items():
        r = captioner(photo, seed=0)
        row[kind] = dict(caption=r.text.strip(), objective=round(r.loss, 3), terms={k: round(v, 4) for k, v in r.terms.items()}, seconds=round(r.seconds, 1), evaluations=r.evaluations)
    rows.append(row)
found = dict(made=made(SEARCH + ["autodan", "captioning"], "smollm2-135m, imagenet-minilm", a.device), models="smollm2-135m, imagenet-minilm; sentiment term: smollm2-135m", sentiment_search={k: v for k, v in small.items() if k != "progress"}, date=time.strftime("%Y-%m-%d"),
             machine=machine(a.device), rows=rows)
if installed("gemma3-270m"):
    judge = ZeroShotLabel(CausalLM.from_pretrained("gemma3-270m", device=a.device), "positive")
    def log_odds(texts): return torch.special.logit(torch.exp(-judge.exact([judge.prefix + t + judge.suffix for t in texts]).double())).tolist()   # the loss is softplus(-log-odds)
    found["judge"] = "gemma3-270m, zero-shot, neutral baseline subtracted"
    found["sentiment_accuracy"] = {s: sentiment_accuracy({r["photo"]: r[s]["caption"] for r in rows}, log_odds, s)["accuracy"] for s in mood}
    found["plain_called_positive"] = sentiment_accuracy({r["photo"]: r["plain"]["caption"] for r in rows}, log_odds, "positive")["accuracy"]
a.out.write_text(json.dumps(found, indent=1))
