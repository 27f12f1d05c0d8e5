"""Bad input of every kind: no traceback, exit code 2, one line that names the argument or the file; and from Python an error that does."""
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from fuse_nb import captioning, cli, inversion, makers, runs

HERE = Path(__file__)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    "A folder with good and bad files, which the cases name as {name}."
    r = tmp_path_factory.mktemp("room")
    Image.new("RGB", (20, 20), (9, 9, 9)).save(r / "photo.png")
    (r / "text.png").write_text("not a picture")
    (r / "empty.png").write_bytes(b"")
    (r / "cut.png").write_bytes((r / "photo.png").read_bytes()[:40])
    (r / "text.txt").write_text("words")
    (r / "folder.png").mkdir()
    (r / "empty").mkdir()
    (r / "photos").mkdir()
    for k in (1, 2):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(r / "photos" / f"p{k}.png")
    (r / "twice").mkdir()
    for ending in ("png", "bmp"):
        Image.new("RGB", (8, 8)).save(r / "twice" / f"same.{ending}")
    (r / "model").mkdir()
    (r / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    (r / "nomodel").mkdir()
    (r / "badmodel").mkdir()
    (r / "badmodel" / "config.json").write_text("{not json")
    (r / "foreign").mkdir()
    (r / "foreign" / "scores.json").write_text("{}")
    (r / "listrun").mkdir()
    (r / "listrun" / "run.json").write_text("[]")
    good = {"p1": ["a dog", "the dog"], "p2": ["a cat"]}
    files = dict(good=good, captions={"p1": "a dog runs", "p2": "a cat"}, other={"x": ["a bus"]}, blank={"p1": [" "], "p2": ["a cat"]}, number=5, null=None, text="words", empty_list=[], empty_dict={},
                 numbers={"p1": [5], "p2": [6]}, annotations={"annotations": 5}, noname=[{"caption": "a"}], onlyone={"p1": "a dog"}, emptycap={"p1": "", "p2": "a cat"}, twice=[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}])
    for name, data in files.items():
        (r / f"{name}.json").write_text(json.dumps(data))
    (r / "broken.json").write_text('{"p1": ["a dog"')
    (r / "latin.json").write_bytes('{"p1": ["caf\xe9"]}'.encode("latin-1"))
    (r / "deep.json").write_text("[" * 200000)
    (r / "nothing.json").write_bytes(b"")
    os.mkfifo(r / "pipe.png")
    return r


P, LONG = "{photo.png}", "n" * 5000
SCORE, EVAL = ["score", "{captions.json}", "{good.json}"], ["evaluate", "--images", "{photos}", "--out", "{new}"]
CASES = {
    # what the line must name -> commands
    "COMMAND": [[], ["--capton"]],
    "capton": [["capton", P]],
    "PHOTO": [["caption"], ["caption", "--steps", "3"], ["caption", ""], ["caption", "  "], ["caption", "a\0b"]],
    "missing.jpg": [["caption", "missing.jpg"], ["caption", "nowhere/missing.jpg"]],
    "text.png": [["caption", "{text.png}"]],
    "empty.png": [["caption", "{empty.png}"]],
    "cut.png": [["caption", "{cut.png}"]],
    "text.txt": [["caption", "{text.txt}"]],
    "folder.png": [["caption", "{folder.png}"]],
    "empty": [["caption", "{empty}"], ["evaluate", "--images", "{empty}", "--out", "{new}"]],
    "pipe.png": [["caption", "{pipe.png}"]],
    "nnnn": [["caption", LONG], ["caption", LONG + ".png"], ["caption", P, "--figure", LONG + ".png"]],
    "null": [["caption", "/dev/null"]],
    "unrecognized": [["caption", P, "--step", "3"], ["caption", P, "extra"], ["caption", P, "--stepz=3"], ["score", "a", "b", "c"], ["models", "x"], ["caption", P, "--subset"]],
    "--steps": [["caption", P, "--steps", x] for x in ("0", "-1", "x", "1.5", "", "1e3", "1" * 20, "nan", "1", "0x10", "5000", "٣")] + [["caption", P, "--steps"]],
    "--beam": [["caption", P, "--beam", x] for x in ("0", "-1", "four", "2.0", "inf", "9" * 30, " ")],
    "--candidates": [["caption", P, "--candidates", x] for x in ("0", "-5", "1" + "0" * 23, "many", "1_0")],
    "--seed": [["caption", P, "--seed", x] for x in ("-1", "a", "1.5", str(2**32), "None", "1" * 5000)] + [["fit", "--out", "{new}", "--seed", "-1"], [*EVAL, "--seed", "x"]],
    "--device": [["caption", P, "--device", x] for x in ("cpu:5", "gpu", "", "cuda:x", "CPU", "cuda:-1", "tpu", "cuda:")],
    "--dtype": [[*c, "--dtype", x] for c in (["caption", P], EVAL, ["invert", "--text", "a"], ["validate"]) for x in ("float64", "half", "", "BF16", "torch.bfloat16")] + [["caption", P, "--dtype"]],
    "unrecognized arguments: --dtype": [[*SCORE, "--dtype", "float32"]],
    "cuda:77": [["caption", P, "--device", "cuda:77"], [*EVAL, "--device", "cuda:77"]],
    "--ranker": [["caption", P, "--ranker", x] for x in ("best", "", "Combined", "combined ")] + [["caption", P, "--method", "lm-only", "--ranker", "fuse"], ["caption", P, "--method", "random", "--ranker", "foo"]],
    "--method": [["caption", P, "--method", x] for x in ("best", "", "fuse-nb", "LM-only")] + [[*EVAL, "--method", "best"]],
    "--prefix": [["caption", P, "--prefix", x] for x in ("", "   ", "\n", "a\udcff")],
    "--sentiment": [["caption", P, "--sentiment", x] for x in ("happy", "", "Positive")],
    "--figure": [["caption", P, "--figure", x] for x in ("", " ", "{empty}", "{new}.xyz", "{new}.pgf", "{new}", "nowhere/x.png", "{photo.png}", "{text.png}", "/dev/null", "{new}.jpg", "a\0.png")],
    "--lm": [["caption", P, "--lm", x] for x in ("", " ")] + [["fit", "--out", "{new}", "--lm", ""]],
    "no-such-model": [["caption", P, "--lm", "no-such-model"], ["fit", "--out", "{new}", "--lm", "no-such-model"]],
    "nomodel": [["caption", P, "--lm", "{nomodel}"]],
    "badmodel": [["caption", P, "--lm", "{badmodel}", "--device", "cpu"]],
    "--image-model": [["caption", P, "--image-model", ""], [*SCORE, "--image-model", "x"], [*SCORE, "--images", "{photos}"]],
    "--adapter": [["caption", P, "--adapter", ""]],
    "--json": [["caption", P, "--json=5"]],
    "--out": [["fit"], ["fit", "--out", ""], ["fit", "--out", "{model}"], ["fit", "--out", "{photo.png}"], ["fit", "--out", "{photos}"], ["evaluate", "--images", "{photos}"], ["evaluate", "--images", "{photos}", "--out", ""],
              ["evaluate", "--images", "{photos}", "--out", "{photo.png}"], ["evaluate", "--images", "{photos}", "--out", "{foreign}"], ["evaluate", "--images", "{photos}", "--out", "{foreign}", "--overwrite"],
              ["evaluate", "--images", "{photos}", "--out", "{listrun}"], ["evaluate", "--images", "{photos}", "--out", "{listrun}", "--overwrite"]],
    "--max-tokens": [["fit", "--out", "{new}", "--max-tokens", x] for x in ("0", "-1", "x", "1000000000", "17")],
    "--images": [["evaluate", "--out", "{new}"], ["evaluate", "--images", "", "--out", "{new}"], ["evaluate", "--images", "nowhere", "--out", "{new}"], ["evaluate", "--images", "{photo.png}", "--out", "{new}"],
                 ["evaluate", "--images", "{twice}", "--out", "{new}"], [*SCORE, "--images", "", "--image-model", "x"]],
    "--limit": [[*EVAL, "--limit", x] for x in ("0", "-1", "all", "1.0", "9" * 20)],
    "--workers": [[*EVAL, "--workers", x] for x in ("0", "-1", "two", "5000")],
    "--threads": [[*EVAL, "--threads", x] for x in ("0", "-1", "100000", "x", "1e2")],
    "--metrics": [[*SCORE, "--metrics", x] for x in ("BLEU", "Bleu_5", "", ",", "CIDEr,", "meteor", "CLIPScore", "RefCLIPScore")] + [[*EVAL, "--metrics", x] for x in ("Bleu_9", "CLIPScore", "")],
    "--split": [[*SCORE, "--split", ""], [*EVAL, "--split", " "]],
    "split": [[*SCORE, "--split", "val"], [*EVAL, "--references", "{good.json}", "--split", "val"]],
    "references": [[*EVAL, "--references", "{other.json}"], [*EVAL, "--references", "{blank.json}"], [*EVAL, "--references", ""]],
    "nowhere.json": [[*EVAL, "--references", "nowhere.json"], ["score", "nowhere.json", "{good.json}"], ["score", "{captions.json}", "nowhere.json"]],
    "REFERENCES": [["score", "{captions.json}"]],
    "--subset": [["score", "{onlyone.json}", "{good.json}"]],
    "photos": [["score", "{photos}", "{good.json}"], ["score", "{captions.json}", "{photos}"]],
    "--document-frequencies": [[*SCORE, "--document-frequencies", ""]],
    "good.json": [[*SCORE, "--write-document-frequencies", "{good.json}"]],
    "nowhere": [[*SCORE, "--write-document-frequencies", "nowhere/df.json"]],
    **{f"{n}.json": [["score", f"{{{n}.json}}", "{good.json}"], ["score", "{captions.json}", f"{{{n}.json}}"], [*EVAL, "--references", f"{{{n}.json}}"]] for n in ("broken", "latin", "nothing", "number", "null", "text")},
    "twice.json": [["score", "{twice.json}", "{good.json}"]],
    "noname.json": [["score", "{noname.json}", "{good.json}"], [*EVAL, "--references", "{noname.json}"]],
    "nested": [["score", "{deep.json}", "{good.json}"], [*EVAL, "--references", "{deep.json}"]],
}
TABLE = [(named, args) for named, each in CASES.items() for args in each]


def test_the_table_is_long():
    assert len(TABLE) >= 150


@pytest.mark.parametrize("named, args", TABLE, ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60].encode("ascii", "backslashreplace").decode().replace("\0", "0"))
def test_bad_input_is_one_line(named, args, room, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    fill = {name: str(room / name) for name in (p.name for p in room.iterdir())} | {"new": str(tmp_path / "new")}
    for name, path in fill.items():
        args = [a.replace("{" + name + "}", path) for a in args]
    code = cli.main(args)
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("fuse-nb") and "warning" not in line]
    assert len(lines) == 1 and named in lines[0] and len(lines[0]) < 1700, err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before   # nothing was left behind


@pytest.mark.parametrize("args", [["--help"], ["caption", "--help"], ["--version"]])
def test_help_is_no_error(args, capsys):
    assert cli.main(args) == 0 and capsys.readouterr().err == ""


def test_bad_values_are_told_before_anything_is_loaded(room):
    import subprocess
    code = "import sys; from fuse_nb.cli import main; c = main(sys.argv[1:]); print(c, 'torch' in sys.modules)"
    for args in (["--ranker", "best"], ["--prefix", ""], ["--steps", "0"], ["--device", "cpu:5"], ["--dtype", "int8"], ["--steps", "1"], ["--method", "lm-only", "--ranker", "fuse"]):
        done = subprocess.run([sys.executable, "-c", code, "caption", str(room / "photo.png"), *args], capture_output=True, text=True)
        assert done.stdout.split() == ["2", "False"], (args, done.stdout, done.stderr)


# ---------------------------------------------------------------- from Python

PICTURE = "photo.png"
CALLS = [   # what is called, what the message must name
    (lambda r: captioning.caption(None), "picture"), (lambda r: captioning.caption(5), "picture"), (lambda r: captioning.caption("missing.jpg"), "missing.jpg"), (lambda r: captioning.caption(r / "text.png"), "text.png"),
    (lambda r: captioning.caption(r / PICTURE, method="best"), "method"), (lambda r: captioning.caption(r / PICTURE, method=5), "method"), (lambda r: captioning.caption(r / PICTURE, ranker="best"), "ranker"),
    (lambda r: captioning.caption(r / PICTURE, method="lm", ranker="fuse"), "ranker"), (lambda r: captioning.caption(r / PICTURE, beam=0), "beam"), (lambda r: captioning.caption(r / PICTURE, steps="x"), "steps"),
    (lambda r: captioning.caption(r / PICTURE, steps=1), "steps"), (lambda r: captioning.caption(r / PICTURE, candidates=1.5), "candidates"), (lambda r: captioning.caption(r / PICTURE, stepz=3), "stepz"),
    (lambda r: captioning.caption(r / PICTURE, prefix=""), "prefix"), (lambda r: captioning.caption(r / PICTURE, prefix=None), "prefix"), (lambda r: captioning.caption(r / PICTURE, prefix=["An"]), "prefix"), (lambda r: captioning.caption(r / PICTURE, prefix="\udcff"), "prefix"),
    (lambda r: captioning.caption(r / PICTURE, sentiment="happy"), "sentiment"), (lambda r: captioning.caption(r / PICTURE, weights={"fluencies": 1}), "weights"), (lambda r: captioning.caption(r / PICTURE, weights={"image": "22"}), "weights"),
    (lambda r: captioning.caption(r / PICTURE, weights={"image": float("nan")}), "weights"), (lambda r: captioning.caption(r / PICTURE, weights=5), "weights"), (lambda r: captioning.caption(r / PICTURE, lm="no-such-model"), "no-such-model"),
    (lambda r: captioning.caption(r / PICTURE, dtype="float64"), "dtype"), (lambda r: captioning.caption(r / PICTURE, dtype=16), "dtype"), (lambda r: makers.settings_identity(dtype="half"), "dtype"), (lambda r: inversion.invert([1.0], dtype="int8"), "dtype"),
    (lambda r: captioning.caption(r / PICTURE, seed="a"), "seed"), (lambda r: captioning.caption(r / PICTURE, seed=None), "seed"), (lambda r: captioning.caption(r / PICTURE, seed=1.5), "seed"), (lambda r: captioning.caption(r / PICTURE, seed=-1), "seed"),
    (lambda r: captioning.caption(r / PICTURE, lm=None), "lm"), (lambda r: captioning.caption(r / PICTURE, image_model=5), "image_model"),
    (lambda r: run(r, captioner=None), "captioner"), (lambda r: run(r, captioner="module"), "captioner"), (lambda r: run(r, captioner="a:b"), "captioner"), (lambda r: run(r, captioner=5), "captioner"),
    (lambda r: run(r, images=None), "images"), (lambda r: run(r, images=5), "images"), (lambda r: run(r, images=[]), "images"), (lambda r: run(r, images={}), "images"), (lambda r: run(r, images=[None]), "images"), (lambda r: run(r, images=[5]), "images"), (lambda r: run(r, images={"a": None}), "images"),
    (lambda r: run(r, images={None: r / PICTURE}), "images"), (lambda r: run(r, images={1.5: r / PICTURE}), "images"), (lambda r: run(r, images={1: r / PICTURE, "1": r / PICTURE}), "images"), (lambda r: run(r, images=[r / PICTURE] * 2), "images"), (lambda r: run(r, images="nowhere"), "images"),
    (lambda r: run(r, out=None), "out"), (lambda r: run(r, out=""), "out"), (lambda r: run(r, out=5), "out"), (lambda r: run(r, out=r / PICTURE), "out"), (lambda r: run(r, out=r / "foreign"), "out"),
    (lambda r: run(r, references=5), "references"), (lambda r: run(r, references=r / "other.json"), "references"), (lambda r: run(r, references={"p1": ["a"]}), "references"), (lambda r: run(r, references=["a dog"]), "references"),
    (lambda r: run(r, workers=0), "workers"), (lambda r: run(r, workers=1.5), "workers"), (lambda r: run(r, workers="2"), "workers"), (lambda r: run(r, workers=2), "workers"), (lambda r: run(r, workers=True), "workers"),
    (lambda r: run(r, seed="a"), "seed"), (lambda r: run(r, seed=None), "seed"), (lambda r: run(r, seed=-1), "seed"), (lambda r: run(r, seed=10**20), "seed"), (lambda r: run(r, limit=0), "limit"), (lambda r: run(r, limit=-1), "limit"), (lambda r: run(r, limit="3"), "limit"),
    (lambda r: run(r, threads=0), "threads"), (lambda r: run(r, threads=10**5), "threads"), (lambda r: run(r, settings=[]), "settings"), (lambda r: run(r, settings={"a": object()}), "settings"), (lambda r: run(r, settings={"a": float("nan")}), "settings"),
    (lambda r: run(r, metrics=["Bleu"], references=r / "good.json"), "metrics"), (lambda r: run(r, metrics=5), "metrics"), (lambda r: run(r, metrics=[]), "metrics"), (lambda r: run(r, samplez=5), "samplez"), (lambda r: run(r, split="val", references=r / "good.json"), "split"),
]


def run(room, captioner=lambda path, seed: None, **more):
    more = dict(images=room / "photos", out=room / "new", progress=False) | more
    return runs.evaluate_folder(captioner, **more)


@pytest.mark.parametrize("k", range(len(CALLS)))
def test_bad_calls_name_the_argument(k, room, monkeypatch):
    call, named = CALLS[k]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=named):
        call(room)
    assert not (room / "new").exists()
