"""Three models, three tokenizers: SmolLM2 writes, the image model ties, Gemma 3 270M judges the mood: data/three_models.json.

    python tests/three_models.py --out data/three_models.json     # needs Gemma's packages: fuse-nb models
"""
import argparse, json, math, time
from pathlib import Path

import skimage.data

from machine import SEARCH, made
from fuse_nb.autodan import AutoDAN
from fuse_nb.captioning import Captioner
from fuse_nb.causal import CausalLM
from fuse_nb.fitting import FuseAdapter
from fuse_nb.losses import ZeroShotLabel
from fuse_nb.objective import Objective, Term

p = argparse.ArgumentParser()
p.add_argument("--out", required=True, type=Path); p.add_argument("--device", default="cpu")
a = p.parse_args()
captioner, gemma = Captioner.from_pretrained(device=a.device, progress=False), CausalLM.from_pretrained("gemma3-270m", device=a.device)
to_gemma, photo, rows = FuseAdapter.cached(captioner.lm, gemma), skimage.data.chelsea(), []
for mood in ("none", "positive", "negative"):
    terms = list(captioner.objective(photo).terms)
    if mood != "none":
        terms.append(Term(ZeroShotLabel(gemma, mood), 12.0, to_gemma, name="sentiment"))    # a weight belongs to a judge: Gemma's log-odds move little
    r = AutoDAN(end=".", steps=12, beam=2, candidates=8, progress=False).minimize(Objective(*terms), captioner.prefix, seed=0)
    judged = {name: math.exp(-ZeroShotLabel(lm, "positive").exact([f"{ZeroShotLabel.prefix}{r.text}{ZeroShotLabel.suffix}"]).item()) for name, lm in (("gemma3-270m", gemma), ("smollm2-135m", captioner.lm))}
    rows.append(dict(asked=mood, text=r.text, terms=r.terms, evaluations=r.evaluations, seconds=round(r.seconds), p_positive=judged))
a.out.write_text(json.dumps(dict(made=made(SEARCH + ["autodan", "captioning"], "smollm2-135m, imagenet-minilm, gemma3-270m"), models="smollm2-135m, imagenet-minilm, gemma3-270m", date=time.strftime("%Y-%m-%d"), rows=rows), indent=1) + "\n")
