"""Search on photographs with several rankers and numbers of candidates; a JSON row for each run. A second call goes on where the first one stopped.

    python tests/bench_search.py --images DIR --runs combined:16,as-published:256 --out data/bench_search.json
"""
import argparse, json, os, time
from pathlib import Path

from tqdm import tqdm

from fuse_nb.captioning import Captioner
from fuse_nb.autodan import AutoDAN

from machine import SEARCH, machine, made

p = argparse.ArgumentParser()
p.add_argument("--images", required=True, type=Path); p.add_argument("--out", required=True, type=Path)
p.add_argument("--runs", default="combined:16,as-published:256", help="ranker:candidates, separated by commas")
p.add_argument("--steps", type=int, default=10); p.add_argument("--beam", type=int, default=4); p.add_argument("--seed", type=int, default=0)
p.add_argument("--limit", type=int); p.add_argument("--device", default="cpu")
a = p.parse_args()

found = json.loads(a.out.read_text()) if a.out.exists() else dict(models="smollm2-135m, imagenet-minilm", prefix="An image of", steps=a.steps, beam=a.beam, seed=a.seed, machine=machine(a.device), date=time.strftime("%Y-%m-%d"), rows=[])
for name in ("steps", "beam", "seed"):
    if found[name] != getattr(a, name): raise SystemExit(f"{a.out} was made with {name} {found[name]}: take another --out or the same {name}")
done = {(r["photo"], r["ranker"], r["candidates"]) for r in found["rows"]}
captioner = Captioner.from_pretrained(device=a.device, progress=False)
for photo in tqdm(sorted(a.images.iterdir())[:a.limit], unit="photo"):
    for run in a.runs.split(","):
        ranker, candidates = run.split(":")
        if (photo.name, ranker, int(candidates)) in done: continue
        start = time.process_time()
        r = AutoDAN(steps=a.steps, beam=a.beam, ranker=ranker, candidates=int(candidates), progress=False).minimize(captioner.objective(photo), captioner.prefix, seed=a.seed)
        found["rows"].append(dict(photo=photo.name, ranker=ranker, candidates=int(candidates), loss=round(r.loss, 5), evaluations=r.evaluations, processor_seconds=round(time.process_time() - start, 2),
                                  text=r.text, curve=[[t["evaluations"], round(t["seconds"], 2), round(t["loss"], 4)] for t in r.trace]))
        part = a.out.with_suffix(".part")
        part.write_text(json.dumps({"made": made(SEARCH + ["autodan", "captioning"], "smollm2-135m, imagenet-minilm", a.device)} | found, indent=None, separators=(",", ":")).replace('{"photo"', '\n{"photo"'))
        os.replace(part, a.out)
