"Measure speed and memory, as JSON: `python tests/bench.py --device cpu --out out/bench.json`. Figures that have a target carry it."
import argparse, json, os, platform, subprocess, sys, time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import bench_algebra
from machine import SEARCH, made


def timed(f, n=5):
    f()
    start = time.perf_counter()
    for _ in range(n): f()
    return (time.perf_counter() - start)/n


def search(device):
    "The bridge's backward pass and an AutoDAN step, as ratios of the target's own passes; a complete fit."
    from fuse_nb.fitting import FuseAdapter
    from fuse_nb.gradient import pull, route
    from fuse_nb.causal import CausalLM
    from fuse_nb.encoders import TextEncoder
    lm, encoder = CausalLM.from_pretrained("smollm2-135m", device=device), TextEncoder.from_pretrained("minilm", device=device)
    start = time.perf_counter()
    adapter = FuseAdapter.fit(lm, encoder)
    fit = time.perf_counter() - start
    texts = [f"An image number {i} of two small dogs that run through a wide green park near the lake" for i in range(64)]
    path = route(adapter, lm.tokenize(texts))
    ids, mask = encoder.pad(path.target_ids)
    goal = encoder.text("a dog in a park")
    leaf = encoder.embed(ids).detach().requires_grad_()
    loss = goal.losses(leaf, mask).sum()
    backward = timed(lambda: torch.autograd.grad(loss, leaf, retain_graph=True))
    grad, = torch.autograd.grad(loss, leaf)
    pulled = timed(lambda: pull(adapter, path, grad))
    return {"fit of 40,000 words, l = 1..4 (s)": dict(value=fit, target=15), "bridge backward over the target's own, 64 texts": dict(value=pulled/backward, target=0.10)}


def step(device):
    "One AutoDAN step (4 texts of 12 tokens, 256 candidates each) against a plain forward pass of the target on the same texts, and against both models on whole texts."
    import skimage.data
    from fuse_nb.causal import CausalLM
    from fuse_nb.images import ImageTextModel
    from fuse_nb.objective import Objective, Term
    from fuse_nb.autodan import AutoDAN
    lm, eye = CausalLM.from_pretrained("smollm2-135m", device=device), ImageTextModel.from_pretrained("imagenet-minilm", device=device)
    prefix = "An image of a small cat that sits on an old table"
    def run(**options):
        objective = Objective(Term(lm), Term(eye.image(skimage.data.chelsea()), 22.0, name="image"))
        seen = []
        r = AutoDAN(beam=4, steps=3, progress=False, callback=lambda row: seen.append(set(objective.terms[1]._seen)), **options).minimize(objective, prefix)
        return r.trace[2]["seconds"] - r.trace[1]["seconds"], sorted(seen[2] - seen[1]), objective
    seconds, texts, objective = min((run(ranker="lm", candidates=256) for _ in range(3)), key=lambda x: x[0])
    image, rows = objective.terms[1], lm.tokenize(texts)
    def plain():                                                                       # batches of 64, padded, in the order they come
        out = []
        with torch.no_grad():
            for i in range(0, len(texts), 64):
                ids, mask = eye.pad(eye.tokenize(texts[i:i + 64]))
                out.append(image.loss.losses(eye.embed(ids), mask))
        return torch.cat(out)
    target, both = timed(plain, 2), timed(lambda: (plain(), lm.nll(rows, prefix_len=len(lm.tokenize([prefix])[0]), mean=True)), 1)
    assert torch.allclose(plain().cpu(), image.exact(texts), atol=1e-4)
    return {f"AutoDAN step over a plain target forward, {len(texts)} texts": dict(value=seconds/target, target=1.5, seconds=seconds),
            "both models on whole texts over an AutoDAN step": dict(value=both/seconds, target=5, seconds=both),
            "AutoDAN step with the default ranker, 16 candidates (s)": dict(value=min(run()[0] for _ in range(3)))}


def ranker(device):
    "The default ranker's prediction for one slot in exact values of the target, and what it orders by them, on the 16 prompts of the verdict."
    import bench_ranker_cost as b
    from fuse_nb.causal import CausalLM
    from fuse_nb.encoders import TextEncoder
    from fuse_nb.fitting import FuseAdapter
    lm, encoder = CausalLM.from_pretrained("smollm2-135m", device=device), TextEncoder.from_pretrained("minilm", device=device)
    name = next(iter(b.WAYS))
    row, = b.measured(b.VERDICT, {name: b.WAYS[name]}, lm, encoder, FuseAdapter.cached(lm, encoder))
    return {"default ranker, processor time in target passes": dict(value=row["passes"], target=32), "rank correlation, all tokens": dict(value=row["all"], target=0.82), "rank correlation, word beginnings": dict(value=row["beginnings"], target=0.90)}


def fresh(program):
    "Seconds that a fresh process takes for a program; the median of three, after one that is not counted."
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[1]


def startup():
    "A fresh process until both models and their adapter are loaded, and how much of that no program with these models can save."
    load = "from fuse_nb.captioning import Captioner; Captioner.from_pretrained(progress=False)"
    return {"import and load before the search (s)": dict(value=fresh(load), target=2.5),
            "of these, the imports of torch and of transformers' classes (s)": dict(value=fresh("from transformers import AutoTokenizer, BertModel, LlamaForCausalLM"))}


def caption(device):
    "Process start to caption, warm cache; the median of three, and of one with a sentiment, which the language model judges too."
    import skimage.data
    photo = Path(skimage.data.__file__).parent/"chelsea.png"
    def run(*more):
        start = time.perf_counter()
        out = subprocess.run([Path(sys.executable).parent/"fuse-nb", "caption", photo, "--device", device, *more], capture_output=True, text=True, check=True)
        return dict(value=time.perf_counter() - start, caption=out.stdout.strip())
    told = sorted([run() for _ in range(4)][1:], key=lambda r: r["value"])
    return {"caption, process start to caption (s)": told[1] | dict(target=7), "caption with a sentiment (s)": run("--sentiment", "positive") | dict(target=25)}


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--device", default="cpu"); p.add_argument("--out", default="out/bench.json")
    a = p.parse_args()
    found = dict(made=made(SEARCH + ["autodan", "captioning"], "smollm2-135m, minilm, imagenet-minilm", a.device), machine=f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {a.device}", date=time.strftime("%Y-%m-%d"), algebra=bench_algebra.run(a.device), search=search(a.device), step=step(a.device), ranker=ranker(a.device), startup=startup(), caption=caption(a.device))
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(found, indent=1))
    print(json.dumps({k: v for k, v in found.items() if k != "algebra"}, indent=1))
