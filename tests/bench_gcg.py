"""GCG beside nanoGCG 0.3.0: one model, one prompt, five target sentences, one seed and one sentence a run; processor time, one thread, runs in turn.

    python tests/bench_gcg.py --nano PATH [--short]

PATH holds transformers 4.47.1, tokenizers 0.21.0 and huggingface_hub 0.27.1 (`pip install --no-deps --target PATH ...`): nanoGCG's prefix cache needs them. Its own defaults are
512 candidates, top 256, no buffer. Both read in --dtype (nanoGCG's authors advise a low one); every text is judged afterwards by the same model in float32.
The file is written after each run; a second call goes on with what is missing.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from machine import SEARCH, made
from fuse_nb.causal import CausalLM
from fuse_nb.losses import TargetText
from fuse_nb.objective import Objective, Term
from fuse_nb.store import PACKAGED, cache_dir
from fuse_nb.swaps import GCG
from fuse_nb.tokens import allowed_tokens

ROOT = Path(__file__).parent.parent
REQUEST, START = "Tell me a story.{text}", "x x x x x x x x x x"
TARGETS = ["Once upon a time there was a small red robot", "The best way to cook rice is with love", "Our train leaves for the mountains at seven",
           "I keep seven green parrots in the garden", "Every winter the old lake freezes over"]
# who runs what: nanoGCG as its authors run it, nanoGCG with our number of candidates, ours by default, and ours without what is ours
ROWS = {"nanogcg, its defaults": dict(width=512, topk=256), "nanogcg, 32 candidates": dict(width=32, topk=64), "fuse_nb, default": {},
        "fuse_nb, plain, 32 candidates": dict(guessed=0, joined=1)}

# What the other environment runs. Its tokenizer gets no begin-of-text token: nanogcg would cut it, <|im_start|>, out of the whole template.
NANO = '''
import json, sys, time
a = json.load(open(sys.argv[1]))
import torch, transformers
from nanogcg.gcg import GCG, GCGConfig
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
config = transformers.AutoConfig.from_pretrained(a["folder"])
config.rope_theta = a["rope_theta"]  # transformers 4 looks for it elsewhere
model = transformers.AutoModelForCausalLM.from_pretrained(a["folder"], config=config, torch_dtype=getattr(torch, a["dtype"])).eval()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=a["folder"] + "/tokenizer.json", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>")
tokenizer.chat_template = a["template"]
clock, log = time.process_time, []
class Timed(GCG):
    def _compute_candidates_loss_original(self, size, embeds):
        losses = super()._compute_candidates_loss_original(size, embeds)
        log.append([clock() - start, len(losses)])
        if log[-1][0] > a["seconds"]: self.stop_flag = True
        return losses
transformers.set_seed(a["seed"])  # config.seed would switch on deterministic algorithms, which are slower
gcg = Timed(model, tokenizer, GCGConfig(num_steps=1000, optim_str_init=a["start"], search_width=a["width"], topk=a["topk"], verbosity="ERROR"))
gcg.not_allowed_ids = torch.tensor(a["banned"])
start = clock()
r = gcg.run([{"role": "user", "content": a["request"].replace("{text}", "{optim_str}")}], a["target"])
rows = [[s, n, text] for (s, n), text in zip(log[1:], r.strings)]  # the first entry is the start's own loss
print(json.dumps(dict(rows=rows, target=gcg.target_ids[0].tolist(), prefix=gcg.before_embeds.shape[1], suffix=gcg.after_embeds.shape[1])))
'''


def ours(lm, target, prefix, suffix, seed, seconds, options):
    "[process seconds, texts, found text] a step."
    rows, begin = [], time.process_time()
    def log(t):
        rows.append([time.process_time() - begin, t["evaluations"], t["text"][len(prefix):len(t["text"]) - len(suffix)]])
        if rows[-1][0] > seconds: raise KeyboardInterrupt
    objective = Objective(Term(TargetText(lm, target)), source=lm)
    GCG(steps=1000, progress=False, callback=log, **options).minimize(objective, prefix=prefix, suffix=suffix, seed=seed, init=START)
    return rows


def theirs(a, lm, folder, target, seed, seconds, options):
    config = json.loads((folder/"config.json").read_text())
    settings = dict(folder=str(folder), rope_theta=config["rope_parameters"]["rope_theta"], template=(folder/"chat_template.jinja").read_text(), seed=seed, start=START, request=REQUEST,
                    target=target, seconds=seconds, dtype=a.dtype, banned=(~allowed_tokens(lm)).nonzero().flatten().tolist(), **options)
    with tempfile.TemporaryDirectory() as room:
        (Path(room)/"run.py").write_text(NANO); (Path(room)/"settings.json").write_text(json.dumps(settings))
        env = {**os.environ, "PYTHONPATH": f"{a.nano}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        out = subprocess.run([sys.executable, Path(room)/"run.py", Path(room)/"settings.json"], stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(out.stdout.splitlines()[-1])


def judged(judge, rows, prefix, suffix, target):
    "[process seconds, texts so far, best float32 loss so far] a step."
    encode = lambda t: judge.tokenizer(t, add_special_tokens=False)["input_ids"]
    losses = TargetText(judge, target).exact_ids([encode(prefix) + encode(t) + encode(suffix) for _, _, t in rows]).tolist()
    return [[round(s, 2), n, round(min(losses[:i + 1]), 4)] for i, (s, n, _) in enumerate(rows)]


def first(rows, loss): return next((s for s, _, y in rows if y <= loss), None)


def against(runs, rival, mine="fuse_nb, default"):
    "For each seed: when the rival reached its best loss, and when ours reached that."
    table = []
    for seed in sorted({r["seed"] for r in runs}):
        pair = {r["row"]: r["rows"] for r in runs if r["seed"] == seed}
        if {rival, mine} <= set(pair):
            loss = pair[rival][-1][2]
            theirs, its = first(pair[rival], loss), first(pair[mine], loss)
            table.append(dict(seed=seed, loss=loss, rival_seconds=theirs, our_seconds=its, ratio=round(theirs/its, 2) if its else None, our_last=pair[mine][-1]))
    ratios = sorted(t["ratio"] if t["ratio"] else 0 for t in table)
    return dict(table=table, median_ratio=statistics.median(ratios) if ratios else None, reached=sum(t["ratio"] is not None for t in table), n=len(table))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--nano", required=True); p.add_argument("--dtype", default="bfloat16"); p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=60, help="processor time of a run; it ends with the step in which this is over")
    p.add_argument("--rows", nargs="*", default=list(ROWS)); p.add_argument("--out", type=Path, default=ROOT/"data"/"bench_gcg.json")
    a = p.parse_args()
    torch.set_num_threads(1)
    lm, judge = (CausalLM.from_pretrained("smollm2-135m", device="cpu", dtype=d) for d in (getattr(torch, a.dtype), torch.float32))
    folder = cache_dir()/f"smollm2-135m-{PACKAGED['smollm2-135m'].sha256[:12]}"
    chat = judge.tokenizer.apply_chat_template([{"role": "user", "content": REQUEST}], tokenize=False, add_generation_prompt=True)
    prefix, suffix = chat.split("{text}")
    encode = lambda t: judge.tokenizer(t, add_special_tokens=False)["input_ids"]
    task = dict(model="smollm2-135m", dtype=a.dtype, seconds=a.seconds, start=START, request=REQUEST, targets=TARGETS, clock="process time, one thread")
    out = json.loads(a.out.read_text()) if a.out.exists() else {}
    if {k: out.get(k) for k in task} != task: out = dict(task, runs=[])
    for seed in range(a.seeds):
        for row in a.rows:
            if any((r["row"], r["seed"]) == (row, seed) for r in out["runs"]): continue
            target = TARGETS[seed % len(TARGETS)]
            if row.startswith("nano"):
                r = theirs(a, judge, folder, target, seed, a.seconds, ROWS[row])
                assert (r["target"], r["prefix"], r["suffix"]) == (encode(target), len(encode(prefix)), len(encode(suffix))), r   # the same task
                rows, total = r["rows"], 0
                for x in rows: x[1] = total = total + x[1]
            else: rows = ours(lm, target, prefix, suffix, seed, a.seconds, ROWS[row])
            out["runs"].append(dict(row=row, seed=seed, rows=judged(judge, rows, prefix, suffix, target), text=rows[-1][2]))
            print(row, seed, out["runs"][-1]["rows"][-1], flush=True)
            out["versus"] = {k: against(out["runs"], k) for k in ROWS if k != "fuse_nb, default"}
            out = {"made": made([*SEARCH, "swaps", "guesses", "greedy"], "smollm2-135m")} | {k: v for k, v in out.items() if k != "made"}
            head, runs = json.dumps({k: v for k, v in out.items() if k != "runs"}, indent=1), ",\n".join(json.dumps(r) for r in out["runs"])
            part = a.out.with_suffix(".part")
            part.write_text(f'{head[:-2]},\n "runs": [\n{runs}\n ]\n}}\n'); os.replace(part, a.out)
    print(json.dumps({k: {x: v[x] for x in ("median_ratio", "reached", "n")} for k, v in out["versus"].items()}, indent=1))
