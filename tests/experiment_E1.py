"""E1: is the gradient valid, and would training the adapter help? Writes data/e1_validity.json; what was measured is kept on the way, so a stopped run goes on.

    python tests/experiment_E1.py [--short] [--pairs smollm2-minilm,gemma3-minilm,smollm2-gemma3] [--prompts 224] [--redo combined]
"""
import argparse, json, math, time, warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fuse_nb import CausalLM, FuseAdapter, TextEncoder
from fuse_nb.adapter import rows_of
from fuse_nb.agreement import MEASURES, WHERE, agreement, rows_from
from fuse_nb.files import cache_dir, data_file, write_json
from fuse_nb.gradient import route
from fuse_nb.objective import Objective, Term
from fuse_nb.probes import goal_losses, kinds_of, made_up, sample_of, slot_of
from fuse_nb.ranking import AsPublished, Fuse, Random, Words, calibrate
from fuse_nb.combined import Combined
from fuse_nb.ridge import parts
from fuse_nb.slots import read_by
from fuse_nb.spelling import spell
from fuse_nb.tables import Tables
from fuse_nb.tokens import allowed_tokens, token_strings
from fuse_nb.validity import Shuffled
from fuse_nb.words import word_list

from machine import SEARCH, code_hash, made

PAIRS = {"smollm2-minilm": ("smollm2-135m", "minilm"), "gemma3-minilm": ("gemma3-270m", "minilm"), "smollm2-gemma3": ("smollm2-135m", "gemma3-270m")}
MODULES = [*SEARCH, "agreement", "probes", "validity"]
WORDS, SEED, TRIED, LONGEST = 40_000, 0, 16, 4
HIDDEN, BATCH, EPOCHS, PATIENCE = 1024, 256, 60, 3


# --- adapters --------------------------------------------------------------------------------------------------------------------------

class Learned(FuseAdapter):
    "One network for each class of words (the larger count), trained by gradient descent on the words that FUSE is fitted on."

    def __init__(self, source, target, nets, mean, scales):
        d = source.embedding_table.shape[1], target.embedding_table.shape[1]
        super().__init__({l: torch.empty(*d, 0) for l in nets}, dict(classes="larger"), mean=mean, source=source, target=target)
        self.nets, self.scales = nets, scales

    def push(self, tube, pair=None):
        l, (a, b) = tube.shape[1], self.scales
        return self.nets[l](tube.flatten(1) / a).view(len(tube), l, -1) * b + self.mean

    def pull_at(self, x, g, pair=None):
        "The adjoint at these embeddings (N, l, d_source): a network's slope depends on where it is taken."
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.push(x), x, g)[0]


def network(kind, l, d):
    wide = l * d[0], l * d[1]
    return nn.Linear(*wide) if kind == "linear" else nn.Sequential(nn.Linear(wide[0], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, wide[1]))


def examples(source, target, spelled, part, l, mean, scales):
    "All words of a class, padded with zeros, as rows (n, l d); which part each is of."
    xs, ys, parts = [], [], []
    for (a, b), (word, _, S, T) in spelled.groups.items():
        if max(a, b) != l: continue
        x, y = rows_of(source.embedding_table, S).float(), rows_of(target.embedding_table, T).float() - mean
        xs.append(nn.functional.pad(x, (0, 0, 0, l - a)).flatten(1) / scales[0]); ys.append(nn.functional.pad(y, (0, 0, 0, l - b)).flatten(1) / scales[1]); parts.append(part[word])
    return torch.cat(xs), torch.cat(ys), torch.cat(parts)


def descend(net, x, y, part, epochs):
    "AdamW on part 0 until part 1 is not better for some epochs; the rate falls tenfold on the way. The best weights are kept."
    train, check = (part == 0).nonzero()[:, 0], part == 1
    r2 = lambda: 1 - ((net(x[check]) - y[check]).square().sum() / y[check].square().sum()).item()
    best, kept, epoch = -math.inf, None, 0
    for rate in (1e-3, 1e-4):
        if kept is not None: net.load_state_dict(kept)
        opt, worse, draw = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.1), 0, torch.Generator().manual_seed(epoch)
        while worse < PATIENCE and epoch < epochs:
            for at in train[torch.randperm(len(train), generator=draw)].split(BATCH):
                loss = (net(x[at]) - y[at]).square().mean()
                opt.zero_grad(); loss.backward(); opt.step()
            epoch += 1
            with torch.no_grad(): now = r2()
            worse = 0 if now > best + 2e-4 else worse + 1
            if now > best: best, kept = now, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(kept)
    return epoch


def train(kind, source, target, spelled, part, mean, longest, epochs):
    tables = source.embedding_table.detach(), target.embedding_table.detach()
    scales = [t.float().std().item() for t in tables]
    nets, spent, start = {}, {}, time.process_time()
    torch.manual_seed(SEED)
    for l in range(1, longest + 1):
        net = network(kind, l, [t.shape[1] for t in tables])
        spent[l] = descend(net, *examples(source, target, spelled, part, l, mean, scales), epochs)
        nets[l] = net.requires_grad_(False)
    return Learned(source, target, nets, mean, scales), dict(seconds=round(time.process_time() - start, 1), epochs=spent)


def codes(E, anchors, wanted, k=16, chunk=512):
    "Orthogonal matching pursuit: of each wanted row the k anchors whose combination comes nearest, and their coefficients."
    D = E[anchors]; U = D / D.norm(dim=1, keepdim=True)
    found = []
    for X in E[wanted].split(chunk):
        at, R = torch.zeros(len(X), 0, dtype=torch.long), X
        for _ in range(k):
            score = (R @ U.T).abs().scatter(1, at, -1.0) if at.shape[1] else (R @ U.T).abs()
            at = torch.cat([at, score.argmax(1, keepdim=True)], 1)
            B = D[at]                                              # (b, j, d)
            G = B @ B.transpose(1, 2)
            G = G + 1e-4 * G.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(at.shape[1])
            c = torch.linalg.solve(G, B @ X[:, :, None])
            R = X - (B * c).sum(1)
        found.append((at, c[..., 0]))
    return [torch.cat(x) for x in zip(*found)]


def sparse(source, target, wanted, k=16):
    "The target's vector of source tokens by sparse codes over shared tokens (after arXiv 2506.06607); shared tokens keep their own. And the R2 of shared words that are left out."
    E, Y = source.embedding_table.detach().float(), target.embedding_table.detach().float()
    strings = token_strings(source)
    spelled = target.tokenizer([s if s[:1] == " " else s.strip() for s in strings], add_special_tokens=False)["input_ids"]
    same = lambda i: len(spelled[i]) == 1 and strings[i][:1] == " " and target.tokenizer.decode(spelled[i]).strip() == strings[i].strip().lower()
    known = [i for i, ok in enumerate(allowed_tokens(source)) if ok and (same(i) or strings[i][:1] == " " and len(spelled[i]) == 1 and target.tokenizer.decode(spelled[i]).strip() == strings[i].strip())][:12_000]
    known = torch.tensor(known)
    there = torch.tensor([spelled[i][0] for i in known.tolist()])
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(SEED))
    held, rest = order[:600], order[600:]
    at, c = codes(E, known[rest], known[held], k)
    truth, guess = Y[there[held]], (Y[there[rest][at]] * c[..., None]).sum(1)
    r2 = 1 - ((guess - truth).square().sum() / (truth - Y[there].mean(0)).square().sum()).item()
    table, start = torch.zeros(len(E), Y.shape[1]), time.process_time()
    table[known] = Y[there]
    wanted = torch.tensor(sorted(set(wanted) - set(known.tolist())))
    at, c = codes(E, known, wanted, k)
    table[wanted] = (Y[there[at]] * c[..., None]).sum(1)
    return table, dict(r2=round(r2, 4), shared=len(known), coded=len(wanted), k=k, seconds=round(time.process_time() - start, 1))


def fitted(source, target, a):
    "name -> adapter, and what was told of each: held-out R2 of words of all lengths, and of one token; seconds."
    n = 8000 if a.short else WORDS
    spelled = spell(source, target, *word_list(n), forms=("text",))
    found, told = {}, {}
    def fit(name, words=spelled, **options):
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = FuseAdapter.fit(source, target, words=words, seed=SEED, **options)
        told[name] = dict(seconds=round(time.process_time() - start, 1))
    fit("pairs"); fit("pairs, no ridge", ridge=0.0); fit("larger", classes="larger"); fit("larger, no ridge", classes="larger", ridge=0.0)
    fit("target", classes="target"); fit("target, no ridge", classes="target", ridge=0.0)
    part = parts(len(spelled.words), 0.1, SEED)
    for kind in ("linear", "MLP"):
        found[f"trained {kind}"], told[f"trained {kind}"] = train(kind, source, target, spelled, part, found["pairs"].mean.float(), 2 if a.short else a.longest, 4 if a.short else EPOCHS)
    for name, adapter in found.items(): told[name] |= scored(adapter, spelled, part)
    return found, told


@torch.no_grad()
def scored(adapter, spelled, part):
    r = adapter.score(spelled, part == 2)
    return dict(r2=r["r2"], r2_by_class={l: v["r2"] for l, v in r["by_class"].items()}, words=r["words"])


def of_few_words(source, target):
    "FUSE from a few of the commonest words, none of them held out above: adapters that are worse on purpose."
    words, shares = word_list(WORDS)
    spelled, part = spell(source, target, words, shares, ("text",)), parts(WORDS, 0.1, SEED)
    found, told = {}, {}
    for few in (500, 2000, 8000):
        mine = [w for w, p in zip(words[:few], part) if p != 2]
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[f"larger, {few} words"] = x = FuseAdapter.fit(source, target, words=mine, forms=("text",), classes="larger", seed=SEED)
        told[f"larger, {few} words"] = dict(seconds=round(time.process_time() - start, 1), apart=True) | scored(x, spelled, part)
    return found, told


# --- one slot ----------------------------------------------------------------------------------------------------------------------------

class Pass:
    "One forward and one backward pass over the tried words of a slot; every adapter reads from it."

    def __init__(self, term, slot, tokens, adapter):
        self.term, self.slot, self.tokens = term, slot, tokens
        self.rows, texts, self.at = read_by(term, [slot], [tokens])
        path = self.path(adapter)
        ids, mask = term.model.pad(path.target_ids)
        leaf = term.model.embed(ids).detach().requires_grad_()
        losses = term.loss.losses(leaf, mask)
        self.grad = torch.autograd.grad(losses.sum(), leaf)[0].float()
        self.losses = losses.detach().float()
        self.word = (self.grad * path.word_of(self.at).to(self.grad)[..., None]).sum(1)  # (n, d_target)

    def path(self, adapter): return route(adapter, self.rows, self.term.prefix, self.term.suffix)

    def source(self, adapter):
        "(n, d_source) the gradient at the slot, through this adapter."
        path, B, m = self.path(adapter), len(self.rows), self.grad.shape[1]
        g = torch.cat([self.grad.reshape(B * m, -1), self.grad.new_zeros(1, self.grad.shape[-1])])
        E = adapter.source.embedding_table.detach()
        n = path.source_width
        ids = torch.zeros(B, n, dtype=torch.long)
        for b, r in enumerate(self.rows): ids[b, :len(r)] = torch.tensor(r)
        flat = torch.cat([rows_of(E, ids.flatten()).float(), torch.zeros(1, E.shape[1])])
        out = torch.zeros(B * n + 1, E.shape[1])
        for pair, positions in path.moves.items():
            to, at = (torch.from_numpy(np.ascontiguousarray(x)) for x in positions)
            back = adapter.pull_at(flat[to], g[at], pair) if hasattr(type(adapter), "pull_at") else adapter.pullback(g[at], pair)
            out.index_add_(0, to.flatten() % len(out), back.flatten(0, 1))
        return out[:-1].view(B, n, -1)[torch.arange(B), torch.from_numpy(np.asarray(self.at))]


def judged(slot, loss, adapters, tables, names, tokens, extra):
    "name -> kind of token -> measures, for the names that are missing."
    sample = sample_of(slot, tokens, TRIED)
    exact = Term(loss).exact(slot.texts(sample)).numpy()
    kinds, found = kinds_of(slot, sample, loss.model), {}
    source, tried = slot.source, slot.expansions(TRIED)
    E = rows_of(source.embedding_table, torch.cat([sample, tried])).float()
    k = len(sample)

    def note(name, raw):
        if name in names: found[name] = {a: [round(x, 4) for x in agreement(raw[of], exact[of], slot.seed)] for a, of in kinds.items() if of.sum() >= 20}

    def averaged(name, raw, losses, n):
        "As the library's rankers: calibrated on what was tried, from three words on."
        if n > 2: raw = calibrate(raw, k + torch.arange(n), losses[:n])
        note(name, raw[:k].numpy())

    term = Term(loss, 1.0, adapters["pairs"])
    note("zero", np.zeros(k)); note("lm", -slot.logprobs[sample].numpy()); note("random", Random().predict(None, slot)[sample].numpy())
    if any(n.startswith(("fuse", "vocabulary", "sparse", "mixture", "shuffled")) for n in names):
        p = Pass(term, slot, tried, adapters["pairs"])
        here = Pass(term, slot, torch.tensor([slot.present]), adapters["pairs"]) if slot.present is not None else None
        own = tables.spelling(source, loss.model)[torch.cat([sample, tried])]
        read = {}
        for name, adapter in {**adapters, "shuffled": Shuffled(adapters["pairs"], SEED)}.items():
            try: g = p.source(adapter)
            except ValueError: continue
            read[name] = g
            if name == "pairs" and slot.seed == 1000 * SEED:  # the library's ranker gives the same
                wanted = Fuse(TRIED).predict(term, slot)[sample]
                torch.testing.assert_close(calibrate(E @ g.mean(0), k + torch.arange(TRIED), p.losses)[:k], wanted, atol=1e-3, rtol=1e-3)
            label = "shuffled" if name == "shuffled" else f"fuse {name}"
            for n in (1, TRIED): averaged(f"{label}, {n}", E @ g[:n].mean(0), p.losses, n)
            if here is not None: averaged(f"{label}, here", E @ here.source(adapter)[0], here.losses, 1)
        for n in (1, TRIED):
            g = p.word[:n].mean(0)
            averaged(f"vocabulary, {n}", own @ g, p.losses, n)
            if "sparse" in extra: averaged(f"sparse, {n}", extra["sparse"][torch.cat([sample, tried])] @ g, p.losses, n)
            for share in (0.25, 0.5, 0.75): averaged(f"mixture {share}, {n}", (1 - share) * (E @ read["pairs"][:n].mean(0)) + share * (own @ g), p.losses, n)
        if here is not None: averaged("vocabulary, here", own @ here.word[0], here.losses, 1)
    if names & {"as-published", "as-published with logits"}:
        t = Term(loss, 1.0, adapters["target, no ridge"])
        note("as-published", AsPublished().predict(t, slot)[sample].numpy())
        t22 = Term(loss, 22.0, adapters["target, no ridge"])
        note("as-published with logits", AsPublished().rank(Objective(t22, source=source), slot)[sample].numpy())
    if "words" in names and extra.get("words"): note("words", extra["words"].predict(term, slot)[sample].numpy())
    if "combined" in names: note("combined", extra["combined"].predict(Term(loss, 1.0, adapters["pairs"]), slot)[sample].numpy())
    return found


def rankers_of(adapters, where, told, words):
    names = ["zero", "random", "lm"] + ["as-published", "as-published with logits"]
    ends = ["1", str(TRIED)] + (["here"] if where == "swap" else [])
    names += [f"fuse {n}, {e}" for n in adapters for e in ends] + [f"shuffled, {e}" for e in ends] + [f"vocabulary, {e}" for e in ends]
    names += [f"{n}, {e}" for n in ("mixture 0.25", "mixture 0.5", "mixture 0.75", *(["sparse"] if "sparse" in told else [])) for e in ("1", str(TRIED))]
    return names + ["combined"] + (["words"] if words else [])


# --- a pair ------------------------------------------------------------------------------------------------------------------------------

def asked(n):
    "Prompts and goals: the library's 96, then the others that were made up for this experiment's intervals."
    prompts, goals = made_up()
    more = json.loads(data_file("validity_prompts.json").read_text("utf-8"))["more"]
    prompts, goals = prompts + [(given, found) for given, found, _ in more], goals + [goal for *_, goal in more]
    return prompts[:n], goals[:n]


def load(name): return (TextEncoder if name == "minilm" else CausalLM).from_pretrained(name, device="cpu")


def measure(pair, a):
    folder = cache_dir() / "experiments"; folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"e1-{pair}{'-short' if a.short else ''}.json"
    state, code = json.loads(kept.read_text()) if kept.exists() else {}, code_hash(MODULES)
    if state.get("code") != code: state = dict(code=code, slots={}, told={})
    source, target = (load(n) for n in PAIRS[pair])
    adapters, told = fitted(source, target, a)
    if not a.short:
        found, more = of_few_words(source, target)
        adapters |= found; told |= more
    state["told"] |= told; write_json(kept, state)
    print(pair, json.dumps(told), flush=True)
    prompts, goals = asked(a.prompts if not a.short else 12)
    allowed, tables = allowed_tokens(source), Tables()
    slot = lambda k, w: slot_of(source, prompts[k], w, allowed, 1000 * SEED + k)
    where = [w for w in WHERE if w in a.where.split(",")]
    state["tokens"] = a.tokens
    extra = {}
    words = isinstance(target, TextEncoder)
    if words: extra["words"] = Words()
    extra["combined"] = Combined(limit=None if words else 60.0)
    if not a.short:
        needed = set()
        for k in range(len(prompts)):
            for w in where:
                s = slot(k, w); needed |= {*sample_of(s, a.tokens, TRIED).tolist(), *s.expansions(TRIED).tolist()}
        extra["sparse"], state["told"]["sparse"] = sparse(source, target, needed)
        print(pair, "sparse", state["told"]["sparse"], flush=True)
    for name in filter(None, a.redo.split(",")):
        for s in state["slots"].values(): s.pop(name, None)
    for k in tqdm(range(len(prompts)), desc=pair, mininterval=20):
        loss = None
        for w in where:
            key = f"{k} {w}"
            new = set(rankers_of(adapters, w, state["told"], words)) - set(state["slots"].get(key, {}))
            if not new: continue
            loss = loss or goal_losses(target, [goals[k]])[0]
            state["slots"][key] = state["slots"].get(key, {}) | judged(slot(k, w), loss, adapters, tables, new, a.tokens, extra)
        write_json(kept, state)
    state |= dict(prompts=len(prompts), tokens=a.tokens); write_json(kept, state)


def summary(pair, a):
    "The rows that the notebook reads: means with intervals."
    kept = cache_dir() / "experiments" / f"e1-{pair}{'-short' if a.short else ''}.json"
    if not kept.exists(): return None
    state = json.loads(kept.read_text())
    if state["code"] != code_hash(MODULES): return None  # rows of other code
    names = list(dict.fromkeys(n for s in state["slots"].values() for n in s))
    rows = []
    main = ("fuse pairs, 1", "fuse pairs, 16", "vocabulary, 16", "vocabulary, here", "words", "combined", "as-published", "lm", "sparse, 16", "fuse trained linear, 16", "fuse trained MLP, 16")
    measured = {n: sum(n in v for k, v in state["slots"].items() if k.endswith("append")) for n in names if ", here" not in n}
    whole = max(measured.values(), default=0)
    names = [n for n in names if measured.get(n, whole) == whole]  # a ranker that is under way is left out
    for r in rows_from(state["slots"], names, SEED):
        if r.among != "all" and r.ranker not in main: continue
        rows.append([r.ranker, r.where, r.among, r.n, [round(x, 3) for x in r.spearman]] + ([[round(x, 3) for x in r.recall], [round(x, 4) for x in r.regret]] if r.among == "all" else []))
    return dict(source=PAIRS[pair][0], target=PAIRS[pair][1], prompts=whole, tokens=state.get("tokens", a.tokens), adapters=state["told"], rows=rows)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--short", action="store_true"); p.add_argument("--pairs", default=",".join(PAIRS))
    p.add_argument("--redo", default=""); p.add_argument("--as-is", action="store_true", help="write what is on file; measure nothing"); p.add_argument("--prompts", type=int, default=224); p.add_argument("--tokens", type=int, default=200); p.add_argument("--where", default="append,swap")
    p.add_argument("--longest", type=int, default=LONGEST); p.add_argument("--out", type=Path, default=Path(__file__).parent.parent/"data"/"e1_validity.json")
    a = p.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    for pair in () if a.as_is else a.pairs.split(","): measure(pair, a)
    found = {pair: s for pair in PAIRS if (s := summary(pair, a))}
    value = {"made": made(MODULES, ", ".join(sorted({m for p in PAIRS.values() for m in p}))), "seed": SEED, "tried": TRIED, "measures": MEASURES, "pairs": found}
    if a.short: print(json.dumps(found, indent=None)[:3000])
    else: a.out.write_text(json.dumps(value, separators=(",", ":")).replace('["', '\n["') + "\n", encoding="utf-8")
    print(f"{time.process_time() - start:.0f} s of processor time")
