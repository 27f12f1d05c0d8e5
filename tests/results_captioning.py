"""From the folders of `fuse-nb evaluate` to data/results_captioning.json: scores with intervals, and the objective compared photograph by photograph.

    python tests/results_captioning.py --references FILE --out data/results_captioning.json NAME=DIR NAME=DIR ...   # the first is compared with the others
"""
import argparse, json, time
from pathlib import Path

import numpy as np

from fuse_nb.captioning import WEIGHTS
from fuse_nb.results import compare, compare_values, result_row
from fuse_nb.datasets import read_references
from fuse_nb.scoring import score_report

from machine import SEARCH, made

p = argparse.ArgumentParser()
p.add_argument("runs", nargs="+", metavar="NAME=DIR"); p.add_argument("--references", required=True); p.add_argument("--out", required=True, type=Path); p.add_argument("--about", default="")
p.add_argument("--modules", default=",".join(SEARCH + ["autodan", "captioning", "metrics", "scoring"]), help="that the numbers exercise; for two versions of one module, that one")
p.add_argument("--scores-only", action="store_true", help="for runs whose image models differ, so that their objectives are not comparable")
a = p.parse_args()
references, rows, losses, reports = read_references(a.references), [], {}, {}
for name, folder in (r.split("=", 1) for r in a.runs):
    lines = [json.loads(line) for line in (Path(folder)/"captions.jsonl").read_text(encoding="utf-8").splitlines()]
    report = score_report({r["id"]: r["caption"] for r in lines}, {r["id"]: references[r["id"]] for r in lines})
    reports[name] = report
    losses[name] = {r["id"]: sum(WEIGHTS[k]*v for k, v in r["terms"].items()) for r in lines}   # the same objective for all, whatever each minimized
    seconds = np.array([r["seconds"] for r in lines])
    rows.append(result_row(name, report, **({} if a.scores_only else dict(objective=round(float(np.mean(list(losses[name].values()))), 4))), evaluations=round(float(np.mean([r["evaluations"] for r in lines]))),
                           seconds=dict(median=round(float(np.median(seconds)), 1), least=round(float(seconds.min()), 1), most=round(float(seconds.max()), 1))))
first, *others = losses
keep = lambda c: {k: v if v is None else round(v, 6) for k, v in c.items()}
found = dict(made=made(a.modules.split(","), "smollm2-135m, imagenet-minilm"), about=a.about, date=time.strftime("%Y-%m-%d"), versions=lines[0]["versions"], rows=rows)
if a.scores_only: found["scores"] = {f"{first} against {o}": {m: keep(c) for m, c in compare(reports[first], reports[o]).items()} for o in others}
else: found["objective"] = {f"{first} against {o}": keep(compare_values(losses[first], losses[o])) for o in others}
if a.out.exists() and (earlier := json.loads(a.out.read_text()).get("earlier")): found["earlier"] = earlier      # rows that lesson 80 holds beside these
a.out.write_text(json.dumps(found, indent=1) + "\n")
