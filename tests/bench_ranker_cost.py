"""What the default ranker costs and how well it orders tokens, and what each part of it is worth: data/ranker_cost.json.
SmolLM2 -> MiniLM; 24 prompts to choose on, 16 others for the verdict (the first 8 are those of the figures 70 passes, 0.78 and 0.87).
Cost: processor time of one prediction over that of an exact value in a batch of 128, both in this process.

    python tests/bench_ranker_cost.py --out data/ranker_cost.json [--set choice|verdict] [--only NAME,NAME]
"""
import argparse, json, os, time
from pathlib import Path

import numpy as np, torch

from fuse_nb.agreement import rank_correlation
from fuse_nb.causal import CausalLM
from fuse_nb.combined import Combined
from fuse_nb.encoders import TextEncoder
from fuse_nb.fitting import FuseAdapter
from fuse_nb.objective import Term
from fuse_nb.slots import State
from fuse_nb.tokens import allowed_tokens, token_strings

from machine import SEARCH, machine, made

VERDICT = [("An image of a man riding a", "a surfer on a big wave in the ocean"), ("A plate of", "grilled fish with lemon and rice"), ("Two", "zebras graze in a dry field"),
           ("A woman holding", "a girl with a pink umbrella in the rain"), ("An image of the", "a steam train crossing a stone bridge"), ("A small", "a kitten asleep on a laptop keyboard"),
           ("An image of people", "a crowd watches fireworks over a harbour"), ("The kitchen has", "a modern kitchen with a steel oven"),
           ("A bus", "a red double-decker in heavy city traffic"), ("The child is", "a boy blows out candles on a birthday cake"), ("A group of", "elephants walk through a shallow river"),
           ("An image of an old", "a rusty tractor stands in tall grass"), ("On the table", "a vase of tulips beside an open book"), ("He throws the", "a pitcher on the mound of a baseball stadium"),
           ("A view of", "snowy mountains behind a frozen lake"), ("The market sells", "baskets of oranges and bananas at a stall")]
CHOICE = [("An image of a dog", "a puppy catches a frisbee in the park"), ("A bowl of", "tomato soup with basil and bread"), ("Three", "ducks swim across a pond"), ("A man in", "a firefighter climbs a ladder to a window"),
          ("An image of the", "a lighthouse on a cliff at sunset"), ("A large", "a whale leaps out of the sea"), ("The street is", "cyclists race through a narrow village"), ("The bedroom has", "a bunk bed with blue blankets"),
          ("A plane", "a jet lands on a wet runway"), ("The girl is", "a dancer practises ballet before a mirror"), ("A pair of", "giraffes eat leaves from a tall tree"), ("An image of an empty", "a wooden bench under a maple in autumn"),
          ("In the garden", "bees gather on purple lavender"), ("She plays the", "a violinist performs with an orchestra"), ("A picture of", "a waterfall in a tropical forest"), ("The shop offers", "shelves full of cheese and wine"),
          ("An image of two", "chess players think over a board"), ("A slice of", "chocolate cake with strawberries"), ("The horse", "a cowboy ropes a calf at a rodeo"), ("People wait", "passengers queue at an airport gate"),
          ("A bridge", "a suspension bridge hidden in fog"), ("The cat sits", "a tabby watches goldfish in a tank"), ("An image of a broken", "a cracked phone screen on the floor"), ("Children run", "pupils play football in a school yard")]


class WithLM(Combined):
    "The language model's log-probability as one more column."

    def features(self, term, states, tokens):
        columns, table = super().features(term, states, tokens)
        x = states[0].logprobs.to(columns)
        return torch.cat([columns, 0.5*((x - x.mean())/x.std())[:, None]], 1), table


class Dropped(Combined):
    "Without some of the columns."

    def __init__(self, *a, drop=(), **o):
        super().__init__(*a, **o)
        self.drop = drop

    def features(self, term, states, tokens):
        columns, table = super().features(term, states, tokens)
        kept = [i for i in range(columns.shape[1]) if i not in self.drop]
        return columns[:, kept], (None if "table" in self.drop else table)


WAYS = {"combined, 16 tried, 16 gradients (default)": lambda: Combined()}
WAYS |= {f"16 tried, {g} gradients": (lambda g=g: Combined(16, g)) for g in (0, 2, 4, 8)}
WAYS |= {f"{n} tried, {g} gradients": (lambda n=n, g=g: Combined(n, g)) for n, g in ((8, 0), (8, 4), (24, 0), (24, 4), (32, 0), (32, 32), (64, 0), (128, 0))}
WAYS |= {f"default, kernel {k}": (lambda k=k: Combined(kernel=k)) for k in (0.0, 0.25, 4.0)}
WAYS |= {f"default, noise {k}": (lambda k=k: Combined(noise=k)) for k in (0.05, 0.5)}
WAYS |= {"default and log-probability": WithLM, "16 tried, 4 gradients, log-probability": lambda: WithLM(16, 4)}
WAYS |= {"default without the word table": lambda: Dropped(drop=(1, 2, "table")), "default without the spelling tangent": lambda: Dropped(drop=(3, 4)), "default without the adapter's tangent": lambda: Dropped(drop=(5,))}


@torch.no_grad()
def slot(lm, prompt, seed, allowed):
    ids = lm.tokenize([prompt])[0]
    return State(lm, ids, lm.prefill([ids])[0][0].float().log_softmax(-1).cpu(), allowed, seed=seed)


def sample_of(state, seed, likely=100, uniform=150):
    pool, g = state.allowed.nonzero().flatten(), torch.Generator().manual_seed(seed)
    return torch.unique(torch.cat([pool[state.logprobs[pool].topk(likely).indices], pool[torch.randperm(len(pool), generator=g)[:uniform]]]))


def measured(pairs, ways, lm, encoder, adapter):
    "Of each way: cost, and a row a prompt of the correlations over all tokens, word beginnings, and the tokens within words."
    allowed, begins = allowed_tokens(lm), np.array([s[:1].isspace() for s in token_strings(lm)])
    rankers, rows, seconds, unit, parts = {n: w() for n, w in ways.items()}, {n: [] for n in ways}, dict.fromkeys(ways, 0.0), 0.0, 0
    warm = slot(lm, "A warm", 999, allowed)
    for r in rankers.values(): r.predict(Term(encoder.text("warm"), 1.0, adapter), warm)   # tables are read
    for k, (prompt, goal) in enumerate(pairs):
        state = slot(lm, prompt, k, allowed)
        sample = sample_of(state, 100 + k)
        start = time.process_time()
        exact = encoder.text(goal).exact(state.texts(sample), batch_size=128).numpy()
        unit, parts = unit + time.process_time() - start, parts + len(sample)
        b = begins[sample]
        for name, ranker in rankers.items():
            fresh = slot(lm, prompt, k, allowed)
            term = Term(encoder.text(goal), 1.0, adapter)
            start = time.process_time()
            p = ranker.predict(term, fresh)
            seconds[name] += time.process_time() - start
            p = p[sample].cpu().numpy()
            rows[name].append([round(rank_correlation(p[m], exact[m]), 4) for m in (np.ones_like(b), b, ~b)])
    return [dict(ranker=n, passes=round(seconds[n]/len(pairs)/(unit/parts), 1), **summary(rows[n]), rows=rows[n]) for n in ways]


def summary(rows):
    "Means, with a 95 % bootstrap interval over prompts."
    r = np.array(rows)
    draws = r[np.random.default_rng(0).integers(len(r), size=(2000, len(r)))].mean(1)
    names = ("all", "beginnings", "within")
    return {n: round(float(r[:, i].mean()), 3) for i, n in enumerate(names)} | {n + " 95 %": [round(float(x), 3) for x in np.percentile(draws[:, i], [2.5, 97.5])] for i, n in enumerate(names)}


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True, type=Path); p.add_argument("--set", default="choice", choices=("choice", "verdict")); p.add_argument("--only"); p.add_argument("--device", default="cpu")
    a = p.parse_args()
    torch.set_num_threads(1)
    lm, encoder = CausalLM.from_pretrained("smollm2-135m", device=a.device), TextEncoder.from_pretrained("minilm", device=a.device)
    adapter = FuseAdapter.cached(lm, encoder)
    ways = {n: w for n, w in WAYS.items() if not a.only or n in a.only.split(";")}
    pairs = dict(choice=CHOICE, verdict=VERDICT)[a.set]
    found = json.loads(a.out.read_text()) if a.out.exists() else {}
    found |= dict(made=made(SEARCH + ["combined", "ranking", "slots", "tables"], "smollm2-135m, minilm", a.device), machine=machine(a.device), date=time.strftime("%Y-%m-%d"))
    found[a.set] = dict(n=len(pairs), ways=measured(pairs, ways, lm, encoder, adapter))
    part = a.out.with_suffix(".part")
    part.write_text(json.dumps(found, indent=None, separators=(",", ":")).replace('{"ranker"', '\n{"ranker"'))
    os.replace(part, a.out)
    for r in found[a.set]["ways"]: print(f"{r['ranker']:45s} {r['passes']:6.1f} {r['all']:.3f} {r['all 95 %']} {r['beginnings']:.3f} {r['within']:.3f}")
