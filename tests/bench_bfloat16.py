"""Does a search in bfloat16 pay on this processor, and what does it cost? data/bfloat16.json.

    python tests/bench_bfloat16.py --photos FOLDER --out data/bfloat16.json          # eight photographs at least, for an interval

Each photograph is captioned in float32 and in bfloat16, by turns, on a quiet machine; both captions are judged again in float32 (`loss`). Then the whole command
`fuse-nb caption`, process start to caption, five times in each.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from machine import SEARCH, made
from fuse_nb.agreement import interval
from fuse_nb.captioning import Captioner
from fuse_nb.precision import _UNITS

DTYPES = ("float32", "bfloat16")


def measured(captioners, photo):
    "Seconds, processor seconds and the objective in float32 of both captions of a photograph."
    row = dict(photo=photo.name)
    for name, captioner in captioners.items():
        began = time.process_time()
        result = captioner(str(photo))
        seconds = dict(seconds=round(result.seconds, 2), processor=round(time.process_time() - began, 2))
        plain = captioners["float32"]
        start = len(plain.lm.tokenize([plain.prefix])[0])
        row[name] = dict(seconds, text=result.text, texts=result.evaluations, loss=round(plain.objective(str(photo))([result.ids], start).total.item(), 4))
    return row


def whole(photo, dtype):
    "Seconds from process start to caption."
    began = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("fuse-nb"), "caption", str(photo), "--device", "cpu", "--dtype", dtype], check=True, capture_output=True)
    return round(time.perf_counter() - began, 2)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photos", type=Path, required=True); p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    photos = sorted(a.photos.glob("*.jpg"))
    busy = os.getloadavg()[0]
    captioners = {d: Captioner.from_pretrained(device="cpu", dtype=d, progress=False) for d in DTYPES}
    for c in captioners.values(): c(str(photos[0]))                                # tables are made, memory is warm
    rows = [measured(captioners, photo) for photo in photos]
    column = lambda dtype, key: np.array([r[dtype][key] for r in rows], dtype=float)
    rounded = lambda values: [round(x, 3) for x in interval(values)]
    told = {f"{key} in bfloat16, of those in float32": rounded(column("bfloat16", key)/column("float32", key)) for key in ("seconds", "processor")}
    told["loss in bfloat16, less that in float32"] = rounded(column("bfloat16", "loss") - column("float32", "loss"))
    command = {d: [] for d in DTYPES}
    for _ in range(5):
        for d in DTYPES: command[d].append(whole(photos[0], d))
    says = {name: bool(getattr(torch.cpu, name, bool)()) for name in _UNITS}
    a.out.write_text(json.dumps(dict(made=made([*SEARCH, "autodan", "captioning", "precision"], "smollm2-135m, imagenet-minilm"), processor=says, load=busy, photos=len(rows), told=told, command=command, rows=rows), indent=1) + "\n")
    print(json.dumps(told, indent=1), command)


if __name__ == "__main__": main()
