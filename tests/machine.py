"What a measured number says of itself: the command, the code, the models, the machine and the day behind it."
import ast
import hashlib
import json
import platform
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

# which modules a measurement exercises
ALGEBRA = ["spectrum", "normal", "tproduct", "pseudoinverse", "gram"]
ADAPTER = [*ALGEBRA, "offsets", "words", "alignment", "vocabulary", "spelling", "adapter", "ridge", "compression", "fitting"]
SEARCH = [*ADAPTER, "gradient", "causal", "families", "encoders", "images", "tokens", "prefixes", "terms", "tables", "slots", "losses", "objective", "ranking", "combined", "loop", "search"]


def machine(device):
    import torch
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {device}"


def code_hash(modules):
    "One digest of what these modules of fuse_nb do: of their syntax trees, without docstrings and comments, so that prose makes no number stale."
    digest = hashlib.sha256()
    for name in sorted(modules):
        tree = ast.parse((ROOT/"fuse_nb"/f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                body[0] = ast.Pass()
        digest.update(f"{name} {ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def made(modules, models="", device="cpu"):
    "The entry `made` of a file in data/: modules are those of fuse_nb that the numbers exercise."
    return dict(command=" ".join(["python", *(str(Path(a)) if "/" not in a or not a.startswith("/") else Path(a).name for a in sys.argv)]),
                code=dict(modules=sorted(modules), sha256=code_hash(modules)), models=models, machine=machine(device), date=time.strftime("%Y-%m-%d"))


def state_of(path):
    "'current', 'stale' (the code has changed since), 'old' (and says so, with the reason), or 'unsigned'."
    entry = json.loads(Path(path).read_text(encoding="utf-8")).get("made", {})
    if entry.get("old"): return "old"
    if entry.get("source"): return "current"                        # figures from elsewhere, with the source named
    if "code" not in entry: return "unsigned"
    return "current" if code_hash(entry["code"]["modules"]) == entry["code"]["sha256"] else "stale"


def called_old(text, why):
    "A file's text with the reason why its numbers are old; the rest stays as it is laid out."
    said = f'"old": {json.dumps(why, ensure_ascii=False)}'
    if "made" not in json.loads(text): return text.replace("{", f'{{"made": {{{said}}},', 1)
    return re.sub(r'"made": *\{(\s*)', lambda m: f'"made": {{{m[1]}{said},{m[1] or " "}', text, count=1)


if __name__ == "__main__":      # python tests/machine.py [--mark WHY]: list the files in data/, or mark the stale ones as old
    why = sys.argv[sys.argv.index("--mark") + 1] if "--mark" in sys.argv else None
    for path in sorted((ROOT/"data").glob("*.json")):
        state = state_of(path)
        if why and state in ("stale", "unsigned"):
            text = path.read_text(encoding="utf-8")
            path.write_text(called_old(text, why), encoding="utf-8")
            state = "old"
        print(f"{state:9s} {path.name}")
