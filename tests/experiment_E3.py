"""E3, scaling: what fit, store and apply cost in seconds and bytes, against a model of cost; what compression and short classes cost in validity. -> data/e3_scaling.json

    python tests/experiment_E3.py [--short] [--only fit,memory,growth,apply,store,bytes,limit,again,processes] [--out FILE]

Seconds are of the process (`time.process_time`), one thread, the quickest of several; but `processes`, which has to be asked for, takes those of the clock: it
wants an idle machine. The constants of the model of cost come from the calibration
settings alone; the errors are those of the held-out settings. Every part is written when it is done; a run that is started again keeps what is there.
"""
import gc, json, os, random, statistics, subprocess, sys, tempfile, time
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch

from experiment_E4 import TEXTS, causal, encoder, kept, mean_within, model_of, options, quiet_fit, summary, swaps
from fuse_nb import FuseAdapter, ridge
from fuse_nb.gram import GramAccumulator
from fuse_nb.ridge import Plan, parts
from fuse_nb.spelling import spell
from fuse_nb.store import write_json
from fuse_nb.validity import Shuffled
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


def errors_of(errors): return dict(n=len(errors), median=round(statistics.median(errors), 4), worst=round(max(errors), 4)) if errors else None


def fitted(rows, keys):
    "Constants >= 0 by least squares of relative errors over `rows`, and the model with them."
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


def one_fit(d, e, longest, n, repeats=2):
    "The quickest of a few fits, call by call, and the model's reading of the work; what lies between the calls is 'rest'."
    source, target = pair_of(d, e)
    words, runs = spelled(n), []
    for _ in range(repeats):
        with Watch() as w:
            start = time.process_time()
            a = quiet_fit(source, target, words, max_tokens=longest)
            total = time.process_time() - start
        runs.append([*w.calls, dict(stage="rest", seconds=total - sum(c["seconds"] for c in w.calls), work=work_of_rest(words, d, e, longest, n))])
    calls = [same[0] | dict(seconds=min(c["seconds"] for c in same)) for same in zip(*runs)]
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
            rows[key] = dict(group=group, setting=s) | one_fit(*s, repeats=1 if short else 2)
            print(key, round(rows[key]["seconds"], 2), {k: round(sum(c["seconds"] for c in rows[key]["calls"] if c["stage"] == k), 2) for k in KEYS}, flush=True)
            yield dict(fits=rows)


def explain(fits):
    "The constants from the calibration fits; every fit predicted with them, whole and by stage."
    calls = lambda group, stage: [c for f in fits.values() if f["group"] == group for c in f["calls"] if c["stage"] == stage and c["seconds"] > 0.002]
    constants, predict = {}, {}
    for stage, keys in KEYS.items(): constants[stage], predict[stage] = fitted(calls("calibrate", stage), keys)
    rows = []
    for f in fits.values():
        by = {k: [sum(c["seconds"] for c in f["calls"] if c["stage"] == k), sum(predict[k](c) for c in f["calls"] if c["stage"] == k)] for k in KEYS}
        told = sum(p for _, p in by.values())
        rows.append(dict(group=f["group"], setting=f["setting"], measured=round(f["seconds"], 3), predicted=round(told, 3), error=round(told/f["seconds"] - 1, 4), stages={k: [round(v, 3) for v in x] for k, x in by.items()},
                         bytes=f["bytes"], expected_bytes=f["expected_bytes"], pairs=f["pairs"]))
    errors = [abs(r["error"]) for r in rows if r["group"] == "held out"]
    return dict(constants={k: {n: float(f"{v:.3g}") for n, v in x.items()} for k, x in constants.items()}, rows=rows, held_out=errors_of(errors))


def growth(short):
    "Process seconds of spelling n words; of the same fit with tables of more tokens, none of which a word uses."
    words, rows = word_list(40_000)[0], []
    spelled(1000)                                                  # the models are loaded
    for n in (5000, 10_000, 20_000, 40_000)[:2 if short else 4]:
        start = time.process_time(); spell(causal("smollm2"), encoder(), words[:n])
        rows.append(dict(what="spelling", words=n, seconds=round(time.process_time() - start, 3)))
    source, target = pair_of(256, 256)
    for times in (1, 2, 5):
        source.embedding_table = table(len(causal("smollm2").embedding_table)*times, 256, 0)
        seconds = quickest(lambda: quiet_fit(source, target, spelled(5000), max_tokens=2), 3)
        rows.append(dict(what="fit", vocabulary=len(source.embedding_table), seconds=round(seconds, 3)))
    print(rows, flush=True)
    return dict(rows=rows)


# ---- memory: a fresh process each, whose freed blocks go back to the system at once

def peak_of(f):
    "Bytes by which the highest resident memory during f exceeds that before it; and what f returns."
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    read = lambda key: next(int(line.split()[1])*1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    before = read("VmRSS")
    kept = f()
    return read("VmHWM") - before, kept


def memory_child(d, e, longest, n):
    "Peaks of fit, save, load and of a pullback, beyond what imports, tables and spelled words hold; and what they were counted to need."
    words, tokens = spelled(n), 1024
    warm = quiet_fit(*pair_of(8, 8), spelled(1000), max_tokens=2)   # libraries that load at first use
    source, target = pair_of(d, e)
    peaks, counted = {}, dict(fit=counted_fit(words, d, e, longest))
    with tempfile.TemporaryDirectory() as folder:
        warm.save_pretrained(folder); FuseAdapter.from_pretrained(folder); warm.pullback(torch.randn(4, 2, 8))
        peaks["fit"], a = peak_of(lambda: quiet_fit(source, target, words, max_tokens=longest))
        peaks["save"], _ = peak_of(lambda: a.save_pretrained(folder))
        peaks["load"], b = peak_of(lambda: FuseAdapter.from_pretrained(folder))
    l = max(b.tensors)
    g = torch.randn(tokens, l, e)
    peaks["pullback"], _ = peak_of(lambda: b.pullback(g))
    counted |= dict(load=dict(bytes=a.nbytes + 5*d*e*l, what="the tensors, and the longest in the making of a mask of what is finite"), pullback=counted_pullback(l, tokens, d, e))
    print(json.dumps(dict(peaks=peaks, counted=counted, stored=a.nbytes)))


def counted_pullback(l, n, d, e):
    "The tensor's spectrum as blocks of real numbers, in float32; the tubes' spectrum, the products, their stack, and the tubes that come back."
    r, c = real_and_complex(l)
    return dict(bytes=4*(r + 4*c)*d*e + 4*n*l*(e + 3*d), what=f"l = {l}")


def counted_fit(words, d, e, longest, chunk=4096):
    """Bytes that a fit holds at its fullest moment, and which that is: from the words' counts, the widths and the longest class alone.

    Sums are float64: for every class, and for every pair with words enough for a tensor of its own, one over the words to fit on and one over those that choose the ridge. To them comes what is at work:
    - adding words: tubes and their spectrum, of a chunk in float32, and its Gram and cross matrices;
    - choosing: matrices of complex frequencies from both sums; of one frequency, its eigenvectors, LAPACK's room and products, in single precision beyond 256 dimensions; for a pair, the tensor that it shrinks to;
    - solving: Gram matrices with the ridge, their factors, the solution, and copies of the larger group.
    """
    part, found, done, class_of = parts(len(words.words), 0.1, 0), [], 0, max
    for l in range(1, longest + 1):
        groups = {ab: g for ab, g in words.groups.items() if class_of(ab) == l and (part[g[0]] < 2).any()}
        if not groups: continue
        count = lambda gs, p: [int((part[g[0]] == p).sum()) for g in gs]
        own = [ab for ab in groups if l > 1 and count([groups[ab]], 0)[0] >= d]
        r, c = real_and_complex(l)
        both, gram, cross = d*d + d*e, d*d, d*e
        sums, tensor, size = 8*l*both, 8*l*cross, 8 if c == 0 else 16
        low = size//2 if d > 256 else size                                 # a number, while eigenvectors are sought
        rest = [g for ab, g in groups.items() if ab not in own]
        calls = [count([groups[ab]], p) for ab in own for p in (0, 1)] + [count(rest, p) for p in (0, 1)]
        for k, sizes in enumerate(calls):                                  # words to add, one after the other
            n = min(chunk, max(sizes, default=0))
            adding = 2*4*l*n*(d + e) + 4*l*both + 8*max(r, c)*gram
            found.append((done + (k + 1)*sums + adding, f"l = {l}, adding words"))
        live = done + len(calls)*sums
        copied = 16*c*both                                                 # complex numbers from two real parts
        eigen = low*(2*both + 5*gram)
        found.append((live + 2*copied + eigen, f"l = {l}, choosing the ridge"))
        solving = copied + 16*l*gram + tensor + max(8*r, 16*c)*both
        found.append((live + solving, f"l = {l}, solving"))
        if own:
            prior = tensor + 16*c*cross + 3*size*cross
            found.append((live + tensor + 2*copied + eigen + prior, f"l = {l}, choosing a pair's ridge"))
            shrinking = copied + 4*tensor + 16*c*cross + 2*size*gram
            found.append((live + len(own)*tensor + shrinking, f"l = {l}, solving for a pair"))
        done += tensor//2*(1 + len(own))
    return dict(zip(("bytes", "what"), max(found)))


def memory_costs(short, keep):
    "Peaks against what was counted: factor and fixed part by least squares of relative errors on the calibration settings."
    rows = keep.get("memory", {}).get("rows", {})
    settings = [("calibrate", s) for s in (CALIBRATE[:2] if short else [CALIBRATE[k] for k in (1, 3, 4, 5, 6, 9)])] + [("held out", s) for s in HELD_OUT[:1 if short else None]]
    for group, s in settings:
        if str(s) in rows: continue
        environment = os.environ | dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        rows[str(s)] = dict(group=group, setting=s) | peaks_of(s, environment)
        if s in HELD_OUT[::3]: rows[str(s)]["usual_fit"] = peaks_of(s, os.environ)["peaks"]["fit"]     # the allocator as it is
        print(s, {k: [round(rows[str(s)]["peaks"][k]/2**20, 1), round(v["bytes"]/2**20, 1)] for k, v in rows[str(s)]["counted"].items()}, flush=True)
        yield dict(memory=dict(rows=rows))
    yield dict(memory=dict(rows=rows, **{what: explained(rows.values(), what) for what in ("fit", "load", "pullback")}))


def peaks_of(setting, environment):
    said = subprocess.run([sys.executable, __file__, "--memory-of", json.dumps(setting)], capture_output=True, text=True, env=environment)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout.splitlines()[-1])


def explained(rows, what):
    "Factor and fixed part for one call; errors of what they say of the held-out settings, and of the count by itself."
    told = [dict(group=r["group"], seconds=r["peaks"][what], work=dict(counted=float(r["counted"][what]["bytes"]))) for r in rows]
    constants, predict = fitted([r for r in told if r["group"] == "calibrate"], ("counted",))
    held = [r for r in told if r["group"] == "held out"]
    off = [abs(predict(r)/r["seconds"] - 1) for r in held]
    alone = [abs(r["work"]["counted"]/r["seconds"] - 1) for r in held]
    return dict(factor=round(constants["counted"], 3), fixed_megabytes=round(constants["call"]/2**20, 2), errors=[round(x, 4) for x in off],
                held_out=errors_of(off), counted_alone=errors_of(alone))


# ---- apply and store

def quickest(f, repeats=5):
    f()
    times = []
    for _ in range(repeats):
        start = time.process_time(); f(); times.append(time.process_time() - start)
    return min(times)


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
        constants, predict = fitted([r for r in mine if r["group"] == "calibrate"], keys)
        for r in mine: r["error"] = round(predict(r)/r["seconds"] - 1, 4)
        errors = [abs(r["error"]) for r in mine if r["group"] == "held out"]
        out[what] = dict(constants={k: float(f"{v:.3g}") for k, v in constants.items()}, held_out=errors_of(errors),
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
                write = quickest(lambda: a.save_pretrained(folder), 5)
                size = sum(f.stat().st_size for f in Path(folder).iterdir())
                read = quickest(lambda: FuseAdapter.from_pretrained(folder), 5)
            rows.append(dict(group="held out" if k > 4 else "calibrate", setting=[d, e, longest, str(dtype)], expected=expected, bytes=size, write=write, read=read))
    out = dict(rows=rows, size_error=round(max(abs(r["bytes"]/r["expected"] - 1) for r in rows), 4))
    for what in ("write", "read"):
        given = [r | dict(seconds=r[what], work=dict(bytes=float(r["bytes"]))) for r in rows]
        constants, predict = fitted([r for r in given if r["group"] == "calibrate"], ("bytes",))
        errors = [abs(predict(r)/r["seconds"] - 1) for r in given if r["group"] == "held out"]
        out[what] = dict(constants={k: float(f"{v:.3g}") for k, v in constants.items()}, held_out=errors_of(errors))
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


class Remembering:
    "The target; exact losses, which no adapter changes, are worked out once."
    def __init__(self, target): self.target, self.known = target, {}

    def __getattr__(self, name): return getattr(self.__dict__["target"], name)

    def text(self, goal):
        loss = self.target.text(goal)
        def exact(texts):
            key = goal, *texts
            if key not in self.known: self.known[key] = loss.exact(texts)
            return self.known[key]
        return SimpleNamespace(losses=loss.losses, exact=exact)


@lru_cache
def judges(): return Remembering(encoder())


def judge(a, texts, only=None, seed=0):
    goals = texts[7:] + texts[:7]
    return swaps(causal("smollm2"), judges(), a, texts, goals, seed, only=only)


def by_text(found):
    out = {}
    for r in found: out.setdefault(str(r["text"]), []).append(r["spearman"])
    return {k: round(float(np.mean(v)), 4) for k, v in out.items()}


def apart(mine, other, seed=0):
    "Mean difference over the same texts, with its bootstrap interval of 95 %."
    same = sorted(mine.keys() & other.keys())
    return mean_within([mine[k] - other[k] for k in same], seed) | dict(texts=len(same))


def validity_of_bytes(short, keep):
    "Ways to hold one adapter; the floor is an adapter whose source dimensions stand in another order."
    rows, n = keep.get("bytes", {}), 3000 if short else 40_000
    if len(rows) >= (4 if short else 15): return
    words, texts = spelled(n), TEXTS[:4 if short else 32]
    whole = quiet_fit(causal("smollm2"), encoder(), words)
    ways = [("float32", None, None, None), ("float16", None, torch.float16, None), ("bfloat16", None, torch.bfloat16, None)]
    ways += [(f"rank {r}", r, torch.float16, None) for r in (192, 128, 64, 32, 16)] + [(f"rank {r} for words", r, torch.float16, words) for r in (192, 128, 64, 32, 16, 8)]
    for name, rank, dtype, given in [*ways[:: 5 if short else 1], ("shuffled", None, None, None)]:
        if name in rows: continue
        small = Shuffled(whole) if name == "shuffled" else whole.compress(rank, dtype, given)
        found = judge(small, texts)
        rows[name] = dict(megabytes=round(small.nbytes/1e6, 3)) | summary(found)["all"] | dict(by_text=by_text(found))
        rows[name]["against float32"] = apart(rows[name]["by_text"], rows["float32"]["by_text"])
        print(name, {k: v for k, v in rows[name].items() if k != "by_text"}, flush=True)
        yield dict(bytes=rows)


def validity_of_limit(short, keep):
    "Longest classes of 1 to 8 tokens: shares of English within them, and validity for ordinary texts and at long words, beside that of 4."
    rows, n = keep.get("limit", {}), 3000 if short else 40_000
    texts, rare = TEXTS[:4 if short else 32], long_texts(4 if short else 32)
    for longest in (4, 2, 3, 6, 1, 8) if not short else (4, 1):
        if str(longest) in rows: continue
        start = time.process_time()
        a = quiet_fit(causal("smollm2"), encoder(), spelled(n), max_tokens=longest)
        row = dict(fit_seconds=round(time.process_time() - start, 1), megabytes=round(a.nbytes/1e6, 2), r2=a.coverage["held_out"]["r2"], tensors=len(a.tensors) + len(a.pairs))
        row |= {k: round(sum(c[v] for c in a.coverage["classes"].values()), 4) for k, v in (("within", "share"), ("weighted", "share_weighted"))}
        for what, some, only in (("texts", texts, None), ("long words", rare, lambda x, y: max(x, y) >= 3)):
            found = judge(a, some, only=only)
            row[what] = summary(found)["all"] | dict(by_text=by_text(found))
            row[what]["against 4"] = apart(row[what]["by_text"], rows["4"][what]["by_text"]) if rows else None
        row["by class"] = {str(l): summary([r for r in found if max(r["counts"]) == l])["all"] for l in range(3, 9)}
        rows[str(longest)] = row
        print(longest, row, flush=True)
        yield dict(limit=rows)


def limit_again(short, keep):
    "The same at long words, other sentences and other slots; and without tensors for pairs of counts."
    rows, n, rare = keep.get("again", {}), 3000 if short else 40_000, long_texts(4 if short else 32, seed=1)
    for longest in ("4", "2", "1", "3", "4 without pairs", "2 without pairs")[:2 if short else None]:
        if longest in rows: continue
        a = quiet_fit(causal("smollm2"), encoder(), spelled(n), max_tokens=int(longest[0]), classes="larger" if "without" in longest else "pairs")
        found = judge(a, rare, only=lambda x, y: max(x, y) >= 3, seed=1)
        rows[longest] = summary(found)["all"] | dict(by_text=by_text(found))
        rows[longest]["against 4"] = apart(rows[longest]["by_text"], rows["4"]["by_text"])
        print(longest, {k: v for k, v in rows[longest].items() if k != "by_text"}, flush=True)
        yield dict(again=rows)


def main():
    p = options(__doc__, "fit,memory,growth,apply,store,bytes,limit,again", "e3_scaling.json")
    p.add_argument("--memory-of", type=json.loads)
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.memory_of: return memory_child(*a.memory_of)
    data, keep = kept(a.out, ADAPTER + ["gradient", "encoders", "sharing"], "smollm2-135m and minilm; tables of other widths are random")
    work = a.out.with_name(f".{a.out.stem}.part.json")             # every call of every fit, until the summary is made
    calls = json.loads(work.read_text()) if work.exists() else {}

    wanted = a.only.split(",")
    if "fit" in wanted and "fit" not in data:
        for new in fit_costs(a.short, calls): calls |= new; write_json(work, calls)
        keep(fit=explain(calls["fits"]))
        print(data["fit"]["constants"], data["fit"]["held_out"], flush=True)
    if "memory" in wanted and "fit" not in data.get("memory", {}):
        for new in memory_costs(a.short, data): keep(**new)
        print({k: v for k, v in data["memory"].items() if k != "rows"}, flush=True)
    if "growth" in wanted and "growth" not in data: keep(growth=growth(a.short))
    if "apply" in wanted and "apply" not in data: keep(apply=apply_costs(a.short))
    if "store" in wanted and "store" not in data: keep(store=store_costs(a.short))
    if "processes" in wanted and "processes" not in data: keep(processes=process_costs(a.short))
    if "bytes" in wanted:
        for new in validity_of_bytes(a.short, data): keep(**new)
    if "limit" in wanted:
        for new in validity_of_limit(a.short, data): keep(**new)
    if "again" in wanted:
        for new in limit_again(a.short, data): keep(**new)
    keep()


if __name__ == "__main__": main()
