"""E7, failures: four ways in which a search goes wrong, each produced on purpose, measured, cured or explained. -> data/e7_failures.json

    python tests/experiment_E7.py [--short] [--only steps,memory,pairs,minima] [--out FILE]

Every part is written when it is done; a run that is started again keeps what is there.
"""
import json, os, random, subprocess, sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch

from experiment_E4 import TEXTS, causal, conditions, encoder, ids_of, kept, known_map, model_of, options, pools, quiet_fit, spelled_table, summary, swaps
from fuse_nb import FuseAdapter, agreement, bridge
from fuse_nb.offsets import decode_all
from fuse_nb.words import word_list
from machine import ADAPTER

ROOT = Path(__file__).parent.parent


def interval(values):
    "Mean and 95 % bootstrap interval."
    mean, low, high = (round(x, 4) for x in agreement.interval(values, draws=4000))
    return dict(mean=mean, low=low, high=high, n=len(values))


# ---- 1: gradient steps that do not improve the task

def gradient_at(adapter, loss, rows, i):
    leaf = adapter.source.embedding_table[torch.tensor(rows)].clone().requires_grad_()
    return torch.autograd.grad(loss.losses(*bridge(adapter, leaf, rows)).sum(), leaf)[0][:, i].mean(0)


def wrong(adapter, seed=0):
    "The same adapter with its source dimensions in another order: what a mismatch of models would give."
    order = torch.randperm(adapter.d_source, generator=torch.Generator().manual_seed(seed))
    turn = lambda held: {k: T[order] for k, T in held.items()}
    return FuseAdapter(turn(adapter.tensors), adapter.config, turn(adapter.pairs), mean=adapter.mean, source=adapter.source, target=adapter.target)


def steps(texts, adapter, slots=2):
    "Change of the loss by one swap at a slot, chosen in six ways."
    source, target, E = adapter.source, adapter.target, adapter.source.embedding_table
    pool, bad, out = pools(source.tokenizer)[0], wrong(adapter), []
    for k, (text, goal) in enumerate(zip(texts, texts[7:] + texts[:7])):
        rng, loss, ids = random.Random(k), target.text(goal), ids_of(source.tokenizer, text)
        exact = lambda tokens: loss.exact(decode_all(source.tokenizer, [ids[:i] + [v] + ids[i + 1:] for v in tokens]))
        for i in rng.sample([i for i in range(len(ids)) if ids[i] in pool], slots):
            now, tried = exact([ids[i]])[0], rng.sample(pool, 16)
            rows = [ids[:i] + [v] + ids[i + 1:] for v in tried]
            one, mean, astray = gradient_at(adapter, loss, [ids], i), gradient_at(adapter, loss, rows, i), gradient_at(bad, loss, rows, i)
            best = lambda g, n: [pool[j] for j in (E[pool] @ g).topk(n, largest=False).indices]
            picks = {"one gradient, its first choice": best(one, 1), "mean of 16, its first choice": best(mean, 1), "mean of 16, the best of 16 evaluated": best(mean, 16),
                     "the best of 16 at random": rng.sample(pool, 16), "one at random": rng.sample(pool, 1), "wrong adapter, the best of 16 evaluated": best(astray, 16)}
            out.append({name: float(exact(v).min() - now) for name, v in picks.items()})
    # and the loss along the gradient, tokens kept: the bridge reads tokens, not embeddings
    leaf = E[ids].clone().requires_grad_()
    value = loss.losses(*bridge(adapter, leaf, ids))
    moved = leaf.detach() - 100*torch.autograd.grad(value.sum(), leaf)[0]
    still = loss.losses(*bridge(adapter, moved, ids))
    return dict(rows={name: dict(improved=interval([r[name] < 0 for r in out]), change=interval([r[name] for r in out])) for name in out[0]}, along_the_gradient=float((still - value).abs().max()), candidates=len(pool))


# ---- 2: memory errors on long sequences

CHILD = """
import resource, sys, json, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from experiment_E4 import causal
from fuse_nb.answers import in_halves
lm, n, rows, room, way = causal("smollm2"), {n}, {rows}, {room}, {way!r}
ids = torch.randint(1000, 40_000, (rows, n), generator=torch.Generator().manual_seed(0)).tolist()
lm.nll(ids[:1])
def whole(some):
    with torch.no_grad(): logits = lm.logits(lm.embed(some))
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(some)[:, 1:].flatten(), reduction="none").view(len(some), -1).sum(1)
used = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmSize")))*1024
resource.setrlimit(resource.RLIMIT_AS, (used + room*2**20, -1))
try:
    found = whole(ids) if way == "at once" else torch.cat(in_halves(whole, ids)) if way == "in halves" else lm.nll(ids)
    print(json.dumps(dict(fits=True, first=round(found[0].item(), 2))))
except (RuntimeError, MemoryError) as e: print(json.dumps(dict(fits=False, said=str(e)[:160])))
"""


def memory(short):
    "Logits of a batch, 4 b n V bytes, under a limit of what the process may take."
    out = []
    for rows, n in ((8, 32), (32, 64)) if short else ((8, 32), (32, 64), (64, 128)):
        for way in ("at once", "in halves", "nll"):
            code = CHILD.format(tests=str(ROOT/"tests"), n=n, rows=rows, room=900, way=way)
            said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])})
            assert said.returncode == 0, said.stderr
            out.append(dict(rows=rows, tokens=n, logits_megabytes=round(4*rows*n*49_152/2**20), room_megabytes=900, way=way) | json.loads(said.stdout.splitlines()[-1]))
            print(out[-1], flush=True)
    d, e = 576, 384
    size = lambda l: dict(tokens=l, tensor_megabytes=round(4*d*e*l/2**20, 2), sums_megabytes=round(8*l*d*(d + e)/2**20, 2))
    try: causal("smollm2").nll([[5]*9000]); refusal = ""
    except ValueError as x: refusal = str(x)
    return dict(logits=out, whole_sequences=[size(l) for l in (1, 4, 16, 64, 256)], too_long=refusal)


# ---- 3: inconsistent results across tokenizer pairs

def pairs(short, n, words):
    "The same target, loss and texts with several sources: the gradient's validity through the adapter, and through the spelling table, which knows no map."
    out, base, table = {}, encoder(), encoder().embedding_table.detach().double()
    wanted = ("permuted", "finer, 5000 pieces", "finer, 1200 pieces", "byte-level BPE", "Unigram", "smollm2, its own embeddings", "gemma3, its own embeddings")
    found = conditions(False)
    for name in [w for w in wanted if w in found][:2 if short else None]:
        sort, t, rows, _, _ = found[name]
        own, W = rows is not None and rows.dim() == 2, known_map("orthogonal", table.shape[1])
        spelled = (spelled_table(t, base) if rows is None or own else table[rows])
        E = rows.float() if own else (spelled @ W).float()
        a = quiet_fit(model_of(t, E, name), base, words, forms=("text",))
        texts = [x.lower() for x in TEXTS[:n]]
        rows_ = swaps(a.source, base, a, texts, texts[7:] + texts[:7], spelled=spelled.float())
        flip = [r | dict(spearman=r["spelling"]) for r in rows_]
        out[name] = dict(r2=a.coverage["held_out"]["r2"], adapter=summary(rows_), spelling=summary(flip))
        print(name, out[name], flush=True)
    return out


# ---- 4: a search stuck in a local minimum

class Descent:
    "Coordinate descent over all words of a list, to the end: a text at which no single swap is better, and this has been tried."
    def __init__(self, loss, words, n): self.loss, self.words, self.n, self.seen = loss, words, n, {}

    def read(self, rows):
        new = [r for r in dict.fromkeys(map(tuple, rows)) if r not in self.seen]
        if new: self.seen.update(zip(new, self.loss.exact(["a photo of " + " ".join(self.words[i] for i in r) for r in new], batch_size=256).tolist()))
        return [self.seen[tuple(r)] for r in rows]

    def down(self, row):
        value, flat = self.read([row])[0], 0
        while flat < self.n:
            for p in range(self.n):
                near = [row[:p] + [v] + row[p + 1:] for v in range(len(self.words))]
                losses = self.read(near)
                k = int(np.argmin(losses))
                if losses[k] < value - 1e-7: row, value, flat = near[k], losses[k], 0
                else: flat += 1
                if flat >= self.n: break
        return value, row

    def two(self, row, value, draws, rng):
        "Random pairs of swaps from a text that no single swap improves."
        near = []
        for _ in range(draws):
            new = list(row)
            for p in rng.sample(range(self.n), 2): new[p] = rng.randrange(len(self.words))
            near.append(new)
        losses = self.read(near)
        return min(losses) < value - 1e-7


def minima(short, words=60, n=4, starts=24):
    "Goals that are no text of the list; from every start, down to a certified local minimum."
    nouns = [w for w in word_list(6000)[0] if len(w) > 4][::7][:words]
    goals, out = TEXTS[9:11] if short else TEXTS[6:12], []
    for goal in goals:
        d, rng = Descent(encoder().text(goal), nouns, n), random.Random(0)
        found = []
        for _ in range(6 if short else starts):
            before = len(d.seen)
            value, row = d.down([rng.randrange(words) for _ in range(n)])
            found.append((value, row, len(d.seen) - before, d.two(row, value, 400, rng)))
        values = [v for v, *_ in found]
        best = min(values)
        hit = [v <= best + 1e-6 for v in values]
        of = lambda k: float(np.mean([min(np.random.default_rng(s).choice(values, k)) for s in range(400)]))
        out.append(dict(goal=goal, starts=len(values), distinct=len({tuple(r) for _, r, *_ in found}), best=round(best, 4), mean=round(float(np.mean(values)), 4), worst=round(max(values), 4), reach_best=sum(hit),
                        by_restarts={k: round(of(k), 4) for k in (1, 2, 4, 8)}, evaluations=round(float(np.mean([e for *_, e, _ in found]))), stuck=sum(not h for h in hit), left_by_two=sum(t for (*_, t), h in zip(found, hit) if not h)))
        print(out[-1], flush=True)
    return dict(words=words, tokens=n, rows=out)


def main():
    a = options(__doc__, "steps,memory,pairs,minima", "e7_failures.json").parse_args()
    torch.set_num_threads(1)
    data, keep = kept(a.out, ADAPTER + ["gradient", "encoders", "answers", "causal"], "smollm2-135m, minilm, gemma3-270m (table and tokenizer)")
    parts = a.only.split(",")
    if "steps" in parts and "steps" not in data:
        adapter = quiet_fit(causal("smollm2"), encoder(), 3000 if a.short else 40_000)
        keep(steps=steps(TEXTS[:8] if a.short else TEXTS[:32], adapter))
        for name, r in data["steps"]["rows"].items(): print(f"{name:42s} {r}", flush=True)
    if "memory" in parts and "memory" not in data: keep(memory=memory(a.short))
    if "pairs" in parts and "pairs" not in data: keep(pairs=pairs(a.short, 8 if a.short else 32, 3000 if a.short else 12_000))
    if "minima" in parts and "minima" not in data: keep(minima=minima(a.short))


if __name__ == "__main__": main()
