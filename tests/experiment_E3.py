"""E3, scaling: what fit, store and apply cost in seconds and bytes, against a model of cost; what compression and short classes cost in validity. -> data/e3_scaling.json

    python tests/experiment_E3.py [--short] [--only fit,memory,apply,store,processes,bytes,limit] [--out FILE]

Seconds are of the process (`time.process_time`), one thread, but for `processes`, which are of the clock. The constants of the model of cost come from the calibration
settings alone; the errors are those of the held-out settings. Every part is written when it is done; a run that is started again keeps what is there.
"""
import gc, json, os, random, statistics, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch

from experiment_E4 import TEXTS, causal, encoder, kept, model_of, options, quiet_fit, summary, swaps
from fuse_nb import FuseAdapter, ridge
from fuse_nb.gram import GramAccumulator
from fuse_nb.ridge import Plan
from fuse_nb.spelling import spell
from fuse_nb.store import write_json
from fuse_nb.words import word_ids, word_list
from machine import ADAPTER

ROOT = Path(__file__).parent.parent
# (d_source, d_target, longest class, words); fits to take the constants from, and others to predict
CALIBRATE = [(128, 128, 2, 5000), (256, 128, 4, 10_000), (384, 384, 2, 20_000), (576, 384, 4, 20_000), (512, 640, 3, 10_000), (384, 256, 8, 20_000), (768, 512, 2, 20_000), (320, 512, 4, 40_000), (576, 384, 1, 40_000), (640, 256, 6, 10_000)]
HELD_OUT = [(448, 320, 4, 20_000), (576, 384, 3, 40_000), (640, 640, 2, 10_000), (320, 320, 8, 20_000), (512, 256, 6, 20_000), (768, 384, 4, 10_000), (576, 384, 2, 40_000), (384, 640, 5, 30_000)]


def table(V, d, seed): return torch.randn(V, d, generator=torch.Generator().manual_seed(seed))/d**0.5


def spelled(n, cache={}):
    if n not in cache: cache[n] = spell(causal("smollm2"), encoder(), *word_list(n))
    return cache[n]


def pair_of(d, e):
    "Two models with the real tokenizers and random tables of any width: what a fit costs does not depend on what the numbers are."
    a, b = causal("smollm2"), encoder()
    return model_of(a.tokenizer, table(len(a.embedding_table), d, 0), f"random {d}"), model_of(b.tokenizer, table(len(b.embedding_table), e, 1), f"random {e}")


# ---- the model of cost: what each call does, in floating point operations and bytes

def real_and_complex(l): return (1 if l % 2 else 2), (l - 1)//2


def work_of_sums(l, n, d, e, calls):
    "Gram and cross matrices of n tubes, in float32; tubes and spectra are written and read; each call starts from zeroed sums, each chunk of 4,096 words adds to them."
    r, c = real_and_complex(l)
    k = 10/16 if d > 256 else 1          # blocks on and above the diagonal
    chunks = max(1, -(-n//4096))
    return dict(products=n*(r*(2*k*d*d + 2*d*e) + c*(4*k*d*d + 2*d*d + 8*d*e)), tubes=4.0*n*l*(d + e)*l**0.5, sums=8.0*l*(d*d + d*e)*(chunks + calls))


def work_of_path(l, d, e, prior, ridges=34):
    "An eigendecomposition a frequency, complex ones at four times the operations; four products of d x d with it; 34 ridges; two products more, in float64, with what a pair shrinks to."
    r, c = real_and_complex(l)
    return dict(eigen=(r + 4*c)*d**3, prior=(r + 4*c)*4*d*d*e*prior, products=(r + 4*c)*(4*d**3 + 6*d*d*e), ridges=(r + c)*2*ridges*d*d, sums=8.0*l*(d*d + d*e)*2, small=float(d <= 256)*(r + 4*c)*d**3)


def work_of_solve(l, d, e, prior):
    "A factor to solve with, and without a prior one before it for the certificate; then two triangular solves, in float64."
    r, c = real_and_complex(l)
    return dict(factor=(r + 4*c)*(1 if prior else 2)*d**3/3, solve=(r + 4*c)*2*d*d*e, sums=8.0*l*(d*d + d*e)*4)


def work_of_apply(l, n, d, e):
    "One product a frequency; DFT there and back."
    r, c = real_and_complex(l)
    return dict(products=2*n*d*e*(r + 4*c), tubes=4.0*n*l*(d + e))


def fitted(rows, held, keys):
    "Constants >= 0 by least squares of relative errors over `rows`; medians and worst of the relative errors over `held`."
    from scipy.optimize import nnls
    seconds = np.array([r["seconds"] for r in rows])
    A = np.array([[r["work"].get(k, 0.0) for k in keys] + [1.0] for r in rows])
    scale = A.max(0) + 1e-30
    x = nnls(A/scale/seconds[:, None], np.ones(len(rows)))[0]/scale
    predict = lambda r: float(np.dot([r["work"].get(k, 0.0) for k in keys] + [1.0], x))
    return dict(zip([*keys, "call"], x.tolist())), predict


# ---- fit

class Watch:
    "Process seconds of every call of the parts of a fit, with what tells the model how much work it was."
    def __init__(self): self.calls, self.depth = [], 0

    def around(self, stage, f, work):
        def run(*args, **kwargs):
            self.depth += 1
            start = time.process_time()
            try: return f(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth: self.calls.append(dict(stage=stage, seconds=time.process_time() - start, work=work(*args, **kwargs)))
        return run

    def __enter__(self):
        def sums_work(plan, groups, l, part):
            return work_of_sums(l, sum(int((plan.part[g[0]] == part).sum()) for g in groups), plan.source_table.shape[1], plan.target_table.shape[1], len(groups))
        self.saved = [(Plan, "sums", Plan.sums), (ridge, "ridge_path", ridge.ridge_path), (ridge, "shrink", ridge.shrink)]
        works = [sums_work, lambda train, held, ridges, prior=None, *a: work_of_path(train.l, train.d_source, train.d_target, prior is not None, len(ridges)),
                 lambda acc, rho, prior=None, center=False: work_of_solve(acc.l, acc.d_source, acc.d_target, prior is not None and rho > 0)]
        for (owner, name, f), work, stage in zip(self.saved, works, ("sums", "path", "solve")): setattr(owner, name, self.around(stage, f, work))
        return self

    def __exit__(self, *e):
        for owner, name, f in self.saved: setattr(owner, name, f)


def one_fit(d, e, longest, n, repeats=3):
    "Medians of a few fits, call by call, and the model's reading of the work; what lies between the calls is 'rest'."
    source, target = pair_of(d, e)
    words, runs = spelled(n), []
    for _ in range(repeats):
        with Watch() as w:
            start = time.process_time()
            a = quiet_fit(source, target, words, max_tokens=longest)
            total = time.process_time() - start
        runs.append([*w.calls, dict(stage="rest", seconds=total - sum(c["seconds"] for c in w.calls), work=work_of_rest(words, d, e, longest, n))])
    calls = [same[0] | dict(seconds=statistics.median(c["seconds"] for c in same)) for same in zip(*runs)]
    return dict(seconds=sum(c["seconds"] for c in calls), calls=calls, pairs=len(a.pairs), bytes=a.nbytes, expected_bytes=expected_bytes(a, d, e))


def work_of_rest(words, d, e, longest, n):
    "Held-out words are predicted; words are put into classes; each tensor's spectrum is made for that."
    score = sum(len(g[0])*(r + 4*c)*2*d*e for ab, g in words.groups.items() for r, c in [real_and_complex(min(max(ab), longest))])*0.1/3
    return dict(score=score, words=float(n), blocks=4.0*d*e*sum(range(1, longest + 1)))


def expected_bytes(a, d, e):
    "Bytes of the tensors and the mean token: 4 d_source d_target l a tensor."
    return 4*d*e*sum(a.tensors) + 4*d*e*sum(max(p) for p in a.pairs) + 4*e


KEYS = dict(sums=("products", "tubes", "sums"), path=("eigen", "products", "prior", "ridges", "small"), solve=("factor", "solve", "sums"), rest=("score", "words", "blocks"))


def fit_costs(short, keep):
    rows = keep.get("fits", {})
    for group, settings in (("calibrate", CALIBRATE[:4] if short else CALIBRATE), ("held out", HELD_OUT[:2] if short else HELD_OUT)):
        for s in settings:
            key = f"{group}: {s}"
            if key in rows: continue
            rows[key] = dict(group=group, setting=s) | one_fit(*s, repeats=1 if short else 3)
            print(key, round(rows[key]["seconds"], 2), {k: round(sum(c["seconds"] for c in rows[key]["calls"] if c["stage"] == k), 2) for k in KEYS}, flush=True)
            yield dict(fits=rows)


def explain(fits):
    "The constants from the calibration fits; every fit predicted with them, whole and by stage."
    calls = lambda group, stage: [c for f in fits.values() if f["group"] == group for c in f["calls"] if c["stage"] == stage and c["seconds"] > 0.002]
    constants, predict = {}, {}
    for stage, keys in KEYS.items(): constants[stage], predict[stage] = fitted(calls("calibrate", stage), None, keys)
    rows = []
    for f in fits.values():
        by = {k: [sum(c["seconds"] for c in f["calls"] if c["stage"] == k), sum(predict[k](c) for c in f["calls"] if c["stage"] == k)] for k in KEYS}
        told = sum(p for _, p in by.values())
        rows.append(dict(group=f["group"], setting=f["setting"], measured=round(f["seconds"], 3), predicted=round(told, 3), error=round(told/f["seconds"] - 1, 4), stages={k: [round(v, 3) for v in x] for k, x in by.items()},
                         bytes=f["bytes"], expected_bytes=f["expected_bytes"], pairs=f["pairs"]))
    errors = [abs(r["error"]) for r in rows if r["group"] == "held out"]
    return dict(constants={k: {n: float(f"{v:.3g}") for n, v in x.items()} for k, x in constants.items()}, rows=rows, held_out=dict(n=len(errors), median=round(statistics.median(errors), 4), worst=round(max(errors), 4)))


# ---- memory: a fresh process each, whose freed blocks go back to the system at once

def peak_of(f):
    "Megabytes by which the highest resident memory during f exceeds that before it."
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    read = lambda key: next(int(line.split()[1])/1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    before = read("VmRSS")
    kept = f()
    return read("VmHWM") - before, kept


def memory_child(d, e, longest, n):
    source, target = pair_of(d, e)
    words = spelled(n)
    quiet_fit(*pair_of(8, 8), spelled(1000), max_tokens=1)         # libraries that load at first use
    peak, a = peak_of(lambda: quiet_fit(source, target, words, max_tokens=longest))
    print(json.dumps(dict(peak=peak, phases=phases(a, words, d, e, longest))))


def phases(a, words, d, e, longest):
    "Megabytes of what the fit holds at its fullest moments: tensors that are done, sums in float64, tubes in float32 of up to 4,096 words, and how many sums' worth a solution copies."
    out, done = [], 0
    for l in range(1, longest + 1):
        sizes = {ab: len(g[0]) for ab, g in words.groups.items() if max(ab) == l}
        own = [ab for ab in a.pairs if max(ab) == l]
        rest = max([n for ab, n in sizes.items() if ab not in own], default=0)
        sums, tube = 8*l*(d*d + d*e), 4*l*(d + e)
        made = [n for ab in own for n in (0.8*sizes[ab], 0.1*sizes[ab])] + [0.8*rest, 0.1*rest]
        out += [dict(what=f"l = {l}, adding words", done=done, sums=(k + 1)*sums, tubes=min(4096, n)*tube, copies=0) for k, n in enumerate(made)]
        out.append(dict(what=f"l = {l}, choosing the ridge", done=done, sums=len(made)*sums, tubes=0, copies=sums))
        done += 4*d*e*l*(1 + len(own))
    out.append(dict(what="held-out words", done=3*done, sums=0, tubes=2048*4*longest*(d + e), copies=0))
    return [{k: v if k == "what" else round(v/2**20, 3) for k, v in p.items()} for p in out]


def told(row, constants):
    "The fullest phase, with so many copies of the tubes, so many of the sums, and a fixed part."
    k_tubes, k_sums, fixed = constants
    full = [(p["done"] + p["sums"] + k_tubes*p["tubes"] + k_sums*p["copies"] + fixed, p["what"]) for p in row["phases"]]
    return max(full)


def memory_costs(short, keep):
    rows = keep.get("memory", {}).get("rows", {})
    settings = [("calibrate", s) for s in (CALIBRATE[:2] if short else [CALIBRATE[k] for k in (1, 3, 4, 5, 6, 9)])] + [("held out", s) for s in (HELD_OUT[:1] if short else HELD_OUT[:6])]
    for group, s in settings:
        if str(s) in rows: continue
        environment = os.environ | dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        said = subprocess.run([sys.executable, __file__, "--memory-of", json.dumps(s)], capture_output=True, text=True, env=environment)
        assert said.returncode == 0, said.stderr
        rows[str(s)] = dict(group=group, setting=s) | json.loads(said.stdout.splitlines()[-1])
        print(s, round(rows[str(s)]["peak"], 1), flush=True)
        yield dict(memory=dict(rows=rows))
    from scipy.optimize import minimize
    mine = [r for r in rows.values() if r["group"] == "calibrate"]
    off = lambda x: sum((told(r, x)[0]/r["peak"] - 1)**2 for r in mine) if min(x) >= 0 else 1e9
    found = min((minimize(off, (k, c, f), method="Nelder-Mead", options=dict(maxiter=4000)) for k in (1, 3, 5) for c in (1, 3) for f in (5, 20)), key=lambda m: m.fun).x
    for r in rows.values():
        size, what = told(r, found)
        r |= dict(predicted=round(size, 1), error=round(size/r["peak"] - 1, 4), fullest=what)
    errors = [abs(r["error"]) for r in rows.values() if r["group"] == "held out"]
    yield dict(memory=dict(rows={k: {n: v for n, v in r.items() if n != "phases"} for k, r in rows.items()}, constants=dict(zip(("copies of the tubes", "copies of the sums", "fixed megabytes"), np.round(found, 2).tolist())),
                           held_out=dict(n=len(errors), median=round(statistics.median(errors), 4), worst=round(max(errors), 4))))


# ---- apply and store

def quickest(f, repeats=5):
    f()
    times = []
    for _ in range(repeats):
        start = time.process_time(); f(); times.append(time.process_time() - start)
    return statistics.median(times)


def apply_costs(short):
    "The pullback of n words' gradients; one product with a vocabulary of V tokens."
    rng, rows = random.Random(0), []
    settings = [(l, n, d, e) for l in range(1, 9) for n, d, e in ((512, 576, 384), (4096, 384, 384), (1024, 768, 512), (256, 640, 640))]
    for k, (l, n, d, e) in enumerate(settings[:: 6 if short else 1]):
        a = FuseAdapter({l: torch.randn(d, e, l)})
        g = torch.randn(n, l, e)
        rows.append(dict(what="pullback", group="held out" if rng.random() < 0.4 else "calibrate", setting=[l, n, d, e], seconds=quickest(lambda: a.pullback(g)), work=work_of_apply(l, n, d, e)))
    for k, (V, d) in enumerate([(V, d) for V in (10_000, 32_000, 49_152, 100_000, 262_144) for d in (256, 576, 640)]):
        E, g = torch.randn(V, d), torch.randn(d)
        rows.append(dict(what="vocabulary", group=("calibrate", "held out")[k % 2], setting=[V, d], seconds=quickest(lambda: E @ g), work=dict(table=4.0*V*d)))
        del E
    out = {}
    for what, keys in (("pullback", ("products", "tubes")), ("vocabulary", ("table",))):
        mine = [r for r in rows if r["what"] == what]
        constants, predict = fitted([r for r in mine if r["group"] == "calibrate"], None, keys)
        for r in mine: r["error"] = round(predict(r)/r["seconds"] - 1, 4)
        errors = [abs(r["error"]) for r in mine if r["group"] == "held out"]
        out[what] = dict(constants={k: float(f"{v:.3g}") for k, v in constants.items()}, held_out=dict(n=len(errors), median=round(statistics.median(errors), 4), worst=round(max(errors), 4)),
                         rows=[dict(group=r["group"], setting=r["setting"], seconds=float(f"{r['seconds']:.3g}"), error=r["error"]) for r in mine])
        print(what, out[what]["constants"], out[what]["held_out"], flush=True)
    return out


def store_costs(short):
    "Bytes of the files against 4 (or 2) d_source d_target l a tensor; process seconds of writing (with its hash) and of reading (which checks it)."
    rows = []
    settings = [(128, 128, 4), (256, 256, 4), (384, 384, 3), (576, 384, 4), (768, 512, 4), (320, 320, 4), (512, 384, 4), (640, 512, 4)]
    for k, (d, e, longest) in enumerate(settings[:3] if short else settings):
        for dtype in (torch.float32, torch.float16):
            if dtype == torch.float32: whole = quiet_fit(*pair_of(d, e), spelled(5000), max_tokens=longest)
            a, each = whole.to(dtype=dtype), 4 if dtype == torch.float32 else 2
            expected = each*(expected_bytes(whole, d, e) - 4*e)//4 + 4*e
            with tempfile.TemporaryDirectory() as folder:
                write = quickest(lambda: a.save_pretrained(folder), 3)
                size = sum(f.stat().st_size for f in Path(folder).iterdir())
                read = quickest(lambda: FuseAdapter.from_pretrained(folder), 3)
            rows.append(dict(group="held out" if k > 4 else "calibrate", setting=[d, e, longest, str(dtype)], expected=expected, bytes=size, write=write, read=read))
    out = dict(rows=rows, size_error=round(max(abs(r["bytes"]/r["expected"] - 1) for r in rows), 4))
    for what in ("write", "read"):
        given = [r | dict(seconds=r[what], work=dict(bytes=float(r["bytes"]))) for r in rows]
        constants, predict = fitted([r for r in given if r["group"] == "calibrate"], None, ("bytes",))
        errors = [abs(predict(r)/r["seconds"] - 1) for r in given if r["group"] == "held out"] or [0.0]
        out[what] = dict(constants={k: float(f"{v:.3g}") for k, v in constants.items()}, held_out=dict(n=len(errors), median=round(statistics.median(errors), 4), worst=round(max(errors), 4)))
    for r in rows: r |= dict(write=float(f"{r['write']:.3g}"), read=float(f"{r['read']:.3g}"))
    print({k: v for k, v in out.items() if k != "rows"}, flush=True)
    return out


def process_worker(rank, world, port, part, settings, out):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    d, e, l, n = settings
    X, Y = torch.randn(n//world, d, l), torch.randn(n//world, e, l)
    GramAccumulator(d, e, l).update(X[:512], Y[:512])
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        acc = GramAccumulator(d, e, l)
        for i in range(0, len(X), 4096): acc.update(X[i:i + 4096], Y[i:i + 4096])
        middle = time.perf_counter()
        acc.reduce()
        out.put((rank, middle - start, time.perf_counter() - start))
    dist.destroy_process_group()


def process_costs(short):
    "Clock seconds of the sums over words in one process and in two, each of one thread; the sums are reduced at the end."
    import torch.multiprocessing as mp
    rows = []
    for d, e, l, n in ((384, 384, 2, 32_768), (576, 384, 4, 32_768)):
        for world in (1, 2):
            out = mp.get_context("spawn").SimpleQueue()
            mp.spawn(process_worker, (world, 29_500 + os.getpid() % 400 + 400*world, None, (d, e, l, n//(8 if short else 1)), out), nprocs=world)
            said = [out.get() for _ in range(3*world)]
            rows.append(dict(setting=[d, e, l, n], processes=world, sums=round(statistics.median(s[1] for s in said), 3), whole=round(statistics.median(s[2] for s in said), 3)))
            print(rows[-1], flush=True)
    return dict(rows=rows)


# ---- validity against bytes, and against the longest class

def long_texts(n, seed=0):
    "Sentences with two words that take three to eight tokens in one of the two tokenizers."
    words = word_list(40_000)[0][5000:]
    counts = np.maximum(*(np.array([len(i) for i in word_ids(m.tokenizer, words)]) for m in (causal("smollm2"), encoder())))
    rng, by = random.Random(seed), {l: [w for w, c in zip(words, counts) if c == l] for l in range(3, 9)}
    frames = ("The %s stood beside the old %s", "Nobody spoke of the %s or the %s", "She painted a %s and a broken %s", "An article about %s mentions %s twice")
    pick = lambda: rng.choice(by[rng.choices((3, 4, 5, 6), (3, 3, 2, 1))[0]])
    return [frames[k % len(frames)] % (pick(), pick()) for k in range(n)]


def judge(a, texts, only=None):
    goals = texts[7:] + texts[:7]
    return swaps(causal("smollm2"), encoder(), a, texts, goals, only=only)


def validity_of_bytes(short, keep):
    rows, n = keep.get("bytes", {}), 3000 if short else 40_000
    if len(rows) >= (3 if short else 14): return
    words, texts = spelled(n), TEXTS[:4 if short else 32]
    whole = quiet_fit(causal("smollm2"), encoder(), words)
    ways = [("float32", None, None, None), ("float16", None, torch.float16, None), ("bfloat16", None, torch.bfloat16, None)]
    ways += [(f"rank {r}", r, torch.float16, None) for r in (192, 128, 64, 32, 16)] + [(f"rank {r} for words", r, torch.float16, words) for r in (192, 128, 64, 32, 16, 8)]
    for name, rank, dtype, given in ways[:: 5 if short else 1]:
        if name in rows: continue
        small = whole.compress(rank, dtype, given)
        rows[name] = dict(megabytes=round(small.nbytes/1e6, 3)) | summary(judge(small, texts))
        print(name, rows[name], flush=True)
        yield dict(bytes=rows)


def validity_of_limit(short, keep):
    "Longest classes of 1 to 8 tokens: shares of English within them, and validity for ordinary texts and at long words."
    rows, n = keep.get("limit", {}), 3000 if short else 40_000
    words, texts, rare = spelled(n), TEXTS[:4 if short else 32], long_texts(4 if short else 32)
    for longest in (1, 2, 3, 4, 6, 8):
        if str(longest) in rows or short and longest not in (1, 4): continue
        a = quiet_fit(causal("smollm2"), encoder(), words, max_tokens=longest)
        classes = a.coverage["classes"].values()
        row = dict(within=round(sum(c["share"] for c in classes), 4), weighted=round(sum(c["share_weighted"] for c in classes), 4), megabytes=round(a.nbytes/1e6, 2), r2=a.coverage["held_out"]["r2"])
        row["texts"] = summary(judge(a, texts))["all"]
        found = judge(a, rare, only=lambda x, y: max(x, y) >= 3)
        row["long words"] = summary(found)["all"]
        row["by class"] = {str(l): summary([r for r in found if max(r["counts"]) == l])["all"] for l in range(3, 9)}
        rows[str(longest)] = row
        print(longest, row, flush=True)
        yield dict(limit=rows)


def main():
    p = options(__doc__, "fit,memory,apply,store,processes,bytes,limit", "e3_scaling.json")
    p.add_argument("--memory-of", type=json.loads)
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.memory_of: return memory_child(*a.memory_of)
    data, keep = kept(a.out, ADAPTER + ["gradient", "encoders", "sharing"], "smollm2-135m and minilm; tables of other widths are random")
    work = a.out.with_name(f".{a.out.stem}.part.json")             # every call of every fit, until the summary is made
    calls = json.loads(work.read_text()) if work.exists() else {}

    parts = a.only.split(",")
    if "fit" in parts and "fit" not in data:
        for new in fit_costs(a.short, calls): calls |= new; write_json(work, calls)
        keep(fit=explain(calls["fits"]))
        print(data["fit"]["constants"], data["fit"]["held_out"], flush=True)
    if "memory" in parts and "constants" not in data.get("memory", {}):
        for new in memory_costs(a.short, data): keep(**new)
        print(data["memory"].get("constants"), data["memory"].get("held_out"), flush=True)
    if "apply" in parts and "apply" not in data: keep(apply=apply_costs(a.short))
    if "store" in parts and "store" not in data: keep(store=store_costs(a.short))
    if "processes" in parts and "processes" not in data: keep(processes=process_costs(a.short))
    if "bytes" in parts:
        for new in validity_of_bytes(a.short, data): keep(**new)
    if "limit" in parts:
        for new in validity_of_limit(a.short, data): keep(**new)


if __name__ == "__main__": main()
