"""GCG beside nanogcg 0.3.0: same model, weights, prompt, start, allowed tokens, candidates, threads; short runs in turn. JSON goes to data/bench_gcg.json.
A second call with the same settings goes on with the seeds that are missing.

    python tests/bench_gcg.py --device cpu --nanogcg-python /tmp/nano/bin/python

nanogcg's prefix cache needs transformers 4.47.1, so it runs in an environment of its own, which is made if it is not there.
"""
import argparse, json, os, platform, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from machine import SEARCH, made
from fuse_nb.store import PACKAGED, cache_dir
from fuse_nb.causal import CausalLM
from fuse_nb.losses import TargetText
from fuse_nb.objective import Objective, Term
from fuse_nb.swaps import GCG
from fuse_nb.tokens import allowed_tokens

REQUEST, TARGET, START = "Tell me a story.{text}", "Once upon a time there was a small red robot", "x x x x x x x x x x"

# What the other environment runs. Its tokenizer gets no begin-of-text token: nanogcg would cut it, <|im_start|>, out of the whole template.
NANO = '''
import json, logging, sys, time
a = json.load(open(sys.argv[1]))
import torch, transformers, nanogcg
from nanogcg.gcg import GCG, GCGConfig
torch.set_num_threads(a["threads"])
transformers.logging.set_verbosity_error()
config = transformers.AutoConfig.from_pretrained(a["folder"])
config.rope_theta = a["rope_theta"]  # transformers 4 looks for it elsewhere
model = transformers.AutoModelForCausalLM.from_pretrained(a["folder"], config=config, torch_dtype=torch.float32).to(a["device"]).eval()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=a["folder"] + "/tokenizer.json", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>")
tokenizer.chat_template = a["template"]
log, clock = [], lambda: [time.perf_counter(), time.process_time()]
class Timed(GCG):
    def _compute_candidates_loss_original(self, size, embeds):
        losses = super()._compute_candidates_loss_original(size, embeds)
        log.append([*clock(), losses.min().item(), len(losses)])
        if log[-1][1] - start[1] > a["seconds"]: self.stop_flag = True
        return losses
transformers.set_seed(a["seed"])  # config.seed would switch on deterministic algorithms, which are slower
gcg = Timed(model, tokenizer, GCGConfig(num_steps=a["steps"], optim_str_init=a["start"], search_width=a["candidates"], topk=a["topk"], batch_size=a["batch"], verbosity="ERROR"))
gcg.not_allowed_ids = torch.tensor(a["banned"], device=a["device"])
start = clock()
r = gcg.run([{"role": "user", "content": a["request"].replace("{text}", "{optim_str}")}], a["target"])
rows = [[w - start[0], p - start[1], loss, n] for w, p, loss, n in log]
print(json.dumps(dict(rows=rows, text=r.best_string, loss=float(r.best_loss), target=gcg.target_ids[0].tolist(), prefix=gcg.before_embeds.shape[1], suffix=gcg.after_embeds.shape[1],
                      versions=f"nanogcg 0.3.0, transformers {transformers.__version__}, torch {torch.__version__}")))
'''


def ours(a, lm, prefix, suffix, seed):
    rows, begin = [], [time.perf_counter(), time.process_time()]
    def log(t):
        rows.append([time.perf_counter() - begin[0], time.process_time() - begin[1], t["loss"], t["evaluations"]])
        if rows[-1][1] > a.seconds: raise KeyboardInterrupt
    objective = Objective(Term(TargetText(lm, TARGET)), source=lm)
    r = GCG(steps=a.steps, candidates=a.candidates, topk=a.topk, progress=False, callback=log).minimize(objective, prefix=prefix, suffix=suffix, seed=seed, init=START)
    return dict(tool="fuse_nb", seed=seed, loss=r.loss, text=r.text, rows=rows)


def theirs(a, python, lm, folder, seed):
    allowed = allowed_tokens(lm)
    config = json.loads((folder/"config.json").read_text())
    settings = dict(folder=str(folder), rope_theta=config["rope_parameters"]["rope_theta"], template=(folder/"chat_template.jinja").read_text(), device=a.device, seed=seed, start=START, request=REQUEST,
                    target=TARGET, candidates=a.candidates, topk=a.topk, steps=a.steps, seconds=a.seconds, threads=a.threads, batch=a.nanogcg_batch, banned=(~allowed).nonzero().flatten().tolist())
    with tempfile.TemporaryDirectory() as room:
        (Path(room)/"run.py").write_text(NANO); (Path(room)/"settings.json").write_text(json.dumps(settings))
        out = subprocess.run([python, Path(room)/"run.py", Path(room)/"settings.json"], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(a.threads), "HF_HUB_OFFLINE": "1"})
    r = json.loads(out.stdout.splitlines()[-1])
    best, rows = float("inf"), []
    for w, p, loss, n in r["rows"]: best = min(best, loss); rows.append([w, p, best, n])
    return dict(r, tool="nanogcg", seed=seed, rows=rows[1:], first=rows[0])  # the first row is the start's own loss


def environment(python: Path):
    if python.exists(): return
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", f"torch=={torch.__version__.split('+')[0]}", "transformers==4.47.1", "nanogcg==0.3.0", "numpy<2.3"], check=True)


def at(rows, seconds, clock): # best loss after so many seconds; clock: 0 wall, 1 process
    if rows[0][clock] > seconds: raise SystemExit(f"no step ended within {seconds} seconds: give more --seconds")
    return next(r[2] for r in reversed(rows) if r[clock] <= seconds)


def summary(runs, seconds):
    "Steps a second of both, their ratio, and the best losses after equal processor time and after equal steps. Every run lasted `seconds` or longer."
    table = {}
    for tool in ("nanogcg", "fuse_nb"):
        mine = [r["rows"] for r in runs if r["tool"] == tool]
        table[tool] = {k: sum(map(len, mine))/sum(r[-1][c] for r in mine) for c, k in enumerate(("steps a second", "steps a processor second"))}
    equal = []
    for seed in sorted({r["seed"] for r in runs}):
        pair = {r["tool"]: r["rows"] for r in runs if r["seed"] == seed}
        n = min(map(len, pair.values()))
        equal.append(dict(seed=seed, **{tool: at(rows, seconds, 1) for tool, rows in pair.items()}, steps=n, **{f"{tool} after these steps": rows[n - 1][2] for tool, rows in pair.items()}))
    mean = {k: sum(e[k] for e in equal)/len(equal) for k in equal[0] if k not in ("seed", "steps")}
    return dict(table=table, ratio={k: table["fuse_nb"][k]/table["nanogcg"][k] for k in table["nanogcg"]}, equal_time=equal, mean_loss=mean)


def save(path, out):
    part = path.with_suffix(".part")
    out = {"made": made(SEARCH + ["swaps"], "smollm2-135m")} | out
    head, rows = json.dumps({k: v for k, v in out.items() if k != "runs"}, indent=1), ",\n".join(json.dumps(r) for r in out["runs"])
    part.write_text(f'{head[:-2]},\n "runs": [\n{rows}\n ]\n}}\n'); os.replace(part, path)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--device", default="cpu"); p.add_argument("--nanogcg-python", type=Path, default=Path("/tmp/nano/bin/python"))
    p.add_argument("--candidates", type=int, default=128); p.add_argument("--topk", type=int, default=64); p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=180, help="processor time of a run; it ends with the step in which this is over"); p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--threads", type=int, default=1); p.add_argument("--nanogcg-batch", type=int, help="candidates of one of its forward passes; its default is all")
    p.add_argument("--out", type=Path, default=Path(__file__).parent.parent/"data"/"bench_gcg.json")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    environment(a.nanogcg_python)
    lm = CausalLM.from_pretrained("smollm2-135m", device=a.device)
    folder = cache_dir()/f"smollm2-135m-{PACKAGED['smollm2-135m'].sha256[:12]}"
    chat = lm.tokenizer.apply_chat_template([{"role": "user", "content": REQUEST}], tokenize=False, add_generation_prompt=True)
    prefix, suffix = chat.split("{text}")
    encode, check = lambda t: lm.tokenizer(t, add_special_tokens=False)["input_ids"], TargetText(lm, TARGET)
    task = dict(model="smollm2-135m, float32", prefix=prefix, suffix=suffix, target=TARGET, start=START, prefix_tokens=len(encode(prefix)), suffix_tokens=len(encode(suffix)), target_tokens=len(check.ids),
                candidates=a.candidates, topk=a.topk, nanogcg_batch=a.nanogcg_batch, seconds=a.seconds)
    out = json.loads(a.out.read_text()) if a.out.exists() else dict(date=time.strftime("%Y-%m-%d"), **task, runs=[])
    if changed := [k for k, v in task.items() if out[k] != v]: raise SystemExit(f"{a.out} was made with another {', '.join(changed)}: take another --out")
    for seed in sorted(set(range(a.seeds)) - {r["seed"] for r in out["runs"]}):
        pair = [theirs(a, a.nanogcg_python, lm, folder, seed), ours(a, lm, prefix, suffix, seed)]
        nano = pair[0]  # the same task, and the same number for its start and its text
        assert (nano["target"], nano["prefix"], nano["suffix"]) == (check.ids, len(encode(prefix)), len(encode(suffix))), nano
        for text, loss in ((START, nano["first"][2]), (nano["text"], nano["loss"])):
            again = check.exact_ids([encode(prefix) + encode(text) + encode(suffix)])[0].item()
            assert abs(again - loss) < 1e-3, (text, loss, again)
        out["machine"] = f"{platform.machine()}, {a.threads} thread(s), torch {torch.__version__}, {a.device}; {nano['versions']}"
        out["runs"] += [dict(tool=r["tool"], seed=seed, text=r["text"], rows=[[round(w, 2), round(p, 2), round(loss, 5), n] for w, p, loss, n in r["rows"]]) for r in pair]
        out.update(summary(out["runs"], a.seconds))
        save(a.out, out)
    print(json.dumps({k: out[k] for k in ("table", "ratio", "equal_time", "mean_loss")}, indent=1))
