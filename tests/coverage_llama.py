"""Share of English words that take at most so many Llama tokens, for word lists of growing length.

    .venv/bin/python tests/coverage_llama.py FOLDER [--out data/coverage_llama.json]

FOLDER holds the Llama tokenizer (32,000 tokens), which this project does not ship. Lesson 20 reads the JSON that this script writes.
"""
import argparse, datetime, hashlib, json, os, platform
from pathlib import Path
import numpy as np, tokenizers, transformers, wordfreq
from importlib.metadata import version
from transformers import AutoTokenizer
from machine import made
from fuse_nb.words import coverage, word_list

LENGTHS, LONGEST = (5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 1_000_000), 8

def measure(tokenizer, lengths=LENGTHS, longest=LONGEST) -> list[dict]:
    words, frequencies = word_list(max(lengths))
    rows = []
    for n in sorted({min(n, len(words)) for n in lengths}):
        c = coverage(tokenizer, words[:n], frequencies[:n], max_tokens=longest)
        rows.append({"words": n, "within": np.round(c.within, 5).tolist(), "weighted_within": np.round(c.weighted_within, 5).tolist()})
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("folder", type=Path, help="folder with the Llama tokenizer's tokenizer.json")
    p.add_argument("--out", type=Path, default=Path("data/coverage_llama.json"))
    a = p.parse_args()
    file = a.folder/"tokenizer.json"
    if not file.is_file(): raise SystemExit(f"{file} is not there: give the folder of a Llama tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(a.folder)
    record = {"what": "share of English words with at most 1, 2 ... 8 Llama tokens, each word inside a sentence, without and with weights by frequency",
              "command": "python tests/coverage_llama.py FOLDER", "date": datetime.date.today().isoformat(),
              "tokenizer": {"name": "Llama (SentencePiece BPE with byte fallback)", "vocabulary": len(tokenizer), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
              "data": f"wordfreq {version('wordfreq')}, lang en, the n most frequent words by word_list's rule",
              "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}",
              "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
              "paper": {"share_within_4": 0.976, "corpus": "BookCorpus", "source": "Williams and Kolter 2024, arXiv 2408.04816"},
              "rows": measure(tokenizer)}
    part = a.out.with_name(a.out.name + ".part")
    record = {"made": made(["offsets", "words", "vocabulary"], "the Llama tokenizer")} | record
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    os.replace(part, a.out)
    for r in record["rows"]: print(f"{r['words']:>8} words: {100*r['within'][3]:.2f} % in at most 4 tokens, weighted {100*r['weighted_within'][3]:.3f} %")

if __name__ == "__main__": main()
