"""Runs over folders: what they own, what they never touch, what they are made of, and how they end."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fuse_nb import runlog, runs

FAKE = '''
import os, random, time, types
class Maker:
    def __init__(self, words=6, bad=(), fail=False, text=None, stopped=None):
        if fail == "later" and os.environ.get("RANK") or fail is True:
            raise ValueError("this captioner cannot be made")
        self.words, self.bad, self.text, self.stopped = words, bad, text, stopped
    def __call__(self, path, seed):
        time.sleep(float(os.environ.get("FAKE_DELAY", 0)))
        if any(b in str(path) for b in self.bad): raise RuntimeError("cannot see " + str(path))
        r = random.Random(seed)
        text = self.text or "a " + " ".join(r.choice("dog cat bus sofa".split()) for _ in range(self.words))
        return types.SimpleNamespace(text=text, loss=r.random(), terms={}, seconds=0.0, stopped=self.stopped)
class Named(Maker):
    MODELS = ["model a"]
    @classmethod
    def identity(cls, **settings): return cls.MODELS
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    "Six pictures, references for them, and a module with a captioner."
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "fake_maker.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    sys.modules.pop("fake_maker", None)
    (tmp_path / "photos").mkdir()
    for k in range(6):
        Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(tmp_path / "photos" / f"p{k}.png")
    (tmp_path / "refs.json").write_text(json.dumps({f"p{k}": ["a dog on a sofa", "a cat"] for k in range(6)}))
    return tmp_path


def go(place, out="out", captioner="fake_maker:Maker", images="photos", **more):
    more = dict(progress=False) | more
    return runs.evaluate_folder(captioner, place / images if isinstance(images, str) else images, place / out, **more)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.name not in (".lock", ".workers")}


# ---------------------------------------------------------------- nothing is lost

@pytest.mark.parametrize("wrong", [dict(settings={"fail": True}), dict(settings={"bad": ["png"]}), dict(settings={"nonsense": 1}), dict(captioner="fake_maker:no_such"), dict(captioner="no_such_module:Maker"),
                                   dict(settings={"fail": "later"}, workers=2), dict(settings={"bad": ["png"]}, workers=2), dict(images="nowhere"), dict(references="nowhere.json"), dict(seed=-1),
                                   dict(settings={"words": 3}, references="refs.json", metrics=["Bleu_9"]), dict(settings={"words": 3}, references="refs.json", nonsense=3)], ids=str)
def test_overwriting_with_a_mistake_leaves_the_old_run_as_it_was(place, wrong):
    go(place, references=place / "refs.json", metrics=["Bleu_1"], tokenized=True)
    before = files(place / "out")
    assert {"captions.jsonl", "scores.json", "run.json"} <= set(before)
    more = {k: place / v if k == "references" else v for k, v in wrong.items()}
    with pytest.raises((ValueError, TypeError, OSError, runlog.RunStopped)):
        go(place, overwrite=True, **more)
    assert files(place / "out") == before


@pytest.mark.parametrize("wrong", [dict(settings={"fail": True}), dict(settings={"fail": "later"}, workers=2), dict(settings={"bad": ["png"]})], ids=str)
def test_a_first_run_that_fails_leaves_nothing_that_refuses_the_corrected_one(place, wrong):
    with pytest.raises((ValueError, runlog.RunStopped)):
        go(place, **wrong)
    assert not (place / "out").exists()
    assert len(go(place).captions) == 6


def test_the_old_run_goes_when_the_new_one_stands(place):
    go(place, settings={"words": 3})
    new = go(place, settings={"words": 4}, overwrite=True)
    assert all(len(r["caption"].split()) == 5 for r in new.captions) and len(new.captions) == 6
    assert sorted(files(place / "out")) == ["captions.jsonl", "run.json"]


def test_killed_before_its_first_line_an_overwriting_run_gives_the_old_one_back(place):
    old = go(place, settings={"words": 3})
    before = files(place / "out")
    code = "import sys, json; from fuse_nb.runs import evaluate_folder; evaluate_folder(**json.loads(sys.argv[1]))"
    more = dict(captioner="fake_maker:Maker", images=str(place / "photos"), out=str(place / "out"), settings={"words": 4}, overwrite=True, progress=False)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "code"), *filter(None, sys.path)]), "FAKE_DELAY": "60"}
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(more)], env=env)
    while json.loads((place / "out" / "run.json").read_text() if (place / "out" / "run.json").exists() else "{}").get("settings") != {"words": 4}:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = go(place, settings={"words": 3})
    assert again.captions == old.captions and files(place / "out")["captions.jsonl"] == before["captions.jsonl"]


@pytest.mark.parametrize("name", ["errors.jsonl", "workers.log", "scores.json", "captions.jsonl", "run.json", ".job.json", "captions.0000.jsonl"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_files_of_the_user_is_refused(place, name, overwrite):
    (place / "out").mkdir()
    (place / "out" / name).write_text('{"id": "p1", "caption": "mine"}\n')
    before = files(place / "out")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        go(place, overwrite=overwrite)
    assert files(place / "out") == before


def test_references_and_pictures_inside_out_are_not_touched(place):
    (place / "out").mkdir()
    (place / "out" / "scores.json").write_bytes((place / "refs.json").read_bytes())
    with pytest.raises(ValueError, match=r"scores\.json"):
        go(place, references=place / "out" / "scores.json", metrics=["Bleu_1"], tokenized=True)
    go(place, "fine")
    with pytest.raises(ValueError, match="references"):
        go(place, "fine", references=place / "fine" / "run.json")


def test_other_files_in_the_folder_stay(place):
    (place / "out").mkdir()
    (place / "out" / "notes.txt").write_text("mine")
    (place / "out" / "captions.mine.jsonl").write_text("mine")
    go(place)
    go(place, settings={"words": 2}, overwrite=True)
    assert (place / "out" / "notes.txt").read_text() == "mine" and (place / "out" / "captions.mine.jsonl").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes only here")
def test_a_file_name_that_is_no_utf8_costs_one_picture_at_most(place):
    Image.new("RGB", (8, 8)).save(os.fsdecode(os.fsencode(place / "photos") + b"/caf\xe9.png"))
    for out, workers in (("one", 1), ("two", 2)):
        result = go(place, out, workers=workers)
        assert len(result.captions) >= 6 and len(result.captions) + len(result.errors) == 7
        for line in (place / out / "captions.jsonl").read_text(encoding="utf-8").splitlines():
            json.dumps(json.loads(line), ensure_ascii=False).encode()   # every text of a record can be written again


def test_half_a_character_in_a_caption_costs_one_picture(place):
    import fake_maker
    maker = fake_maker.Maker()
    def captioner(path, seed):
        found = maker(path, seed)
        if "p3" in path:
            found.text += " \udcff"
        return found
    result = go(place, captioner=captioner)
    assert [r["id"] for r in result.errors] == ["p3"] and len(result.captions) == 5
    assert "half a character" in result.errors[0]["error"]


# ---------------------------------------------------------------- what a run is made of

def test_another_picture_under_the_same_name_is_another_run(place):
    go(place, limit=4)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(place / "photos" / "p2.png")
    with pytest.raises(ValueError, match=r"another run.*pictures.*p2"):
        go(place)
    assert len(go(place, overwrite=True).captions) == 6


def test_other_models_under_the_same_name_are_another_run(place):
    import fake_maker
    go(place, captioner="fake_maker:Named", limit=4)
    assert len(go(place, captioner="fake_maker:Named").captions) == 6
    fake_maker.Named.MODELS = ["model b"]
    with pytest.raises(ValueError, match=r"another run.*models.*model a.*model b"):
        go(place, captioner="fake_maker:Named")


def test_a_models_digest_follows_its_files(tmp_path):
    from fuse_nb.makers import model_digest
    from fuse_nb.store import PACKAGED
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"one")
    first = model_digest(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"two")
    assert model_digest(tmp_path / "m") != first
    assert PACKAGED["smollm2-135m"].sha256[:16] in model_digest("smollm2-135m")
    assert model_digest("imagenet-minilm") != model_digest("minilm")


def test_why_a_search_stopped_is_kept(place):
    assert {r["stopped"] for r in go(place, settings={"stopped": "patience"}).captions} == {"patience"}
    assert "stopped" not in go(place, "none").captions[0]


def test_two_ids_for_one_file_are_two_captions(place):
    file = str(place / "photos" / "p1.png")
    result = go(place, images={"a": file, "b": file, 7: Path(file)})
    assert [r["id"] for r in result.captions] == ["a", "b", 7]
    assert len({r["seed"] for r in result.captions}) == 3


# ---------------------------------------------------------------- how it runs

def test_frames_of_an_installed_package_are_frames(place, monkeypatch):
    "The traceback's last frame is told wherever the package lies."
    import traceback
    whole = traceback.extract_tb
    def installed(tb):
        found = whole(tb)
        for f in found:
            f.filename = "/usr/lib/python3/site-packages/x/" + Path(f.filename).name
        return found
    monkeypatch.setattr(traceback, "extract_tb", installed)
    result = go(place, settings={"bad": ["p2"]})
    assert [r["id"] for r in result.errors] == ["p2"] and result.errors[0]["at"].startswith("fake_maker.py:")


def test_workers_are_spread_over_gpus():
    from fuse_nb.workers import gpu_of
    assert [gpu_of(r, ["0", "1", "2"]) for r in range(5)] == ["0", "1", "2", "0", "1"]
    assert gpu_of(3, []) is None


@pytest.mark.parametrize("rank, cpu, device, gpus, wanted", [(0, False, None, ["0", "1"], "0"), (1, False, None, ["0", "1"], "1"), (3, False, "cuda", ["0", "1"], "1"), (1, False, None, ["4", "GPU-aa"], "GPU-aa"),
                                                             (1, False, "cuda:1", ["0", "1"], "as it was"), (1, False, "cpu", ["0", "1"], "as it was"), (1, False, None, [], "as it was"), (1, True, None, ["0"], "")])
def test_a_worker_sees_its_own_gpu(monkeypatch, rank, cpu, device, gpus, wanted):
    from fuse_nb.workers import choose_gpu
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as it was")
    choose_gpu(cpu, device, gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == wanted


def test_no_more_workers_than_pictures(place, monkeypatch):
    from fuse_nb import workers
    seen = []
    real = workers.launch
    monkeypatch.setattr(runs, "launch", lambda job, n, bar: (seen.append(n), real(job, n, bar))[1])
    result = go(place, workers=8, images=[place / "photos" / "p0.png", place / "photos" / "p1.png"])
    assert seen == [2] and len(result.captions) == 2


def test_threads_follow_the_user_and_the_cores(monkeypatch):
    from fuse_nb.workers import threads_each
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads_each(None, 1) == cores and threads_each(None, 10**3) == 1 and threads_each(3, 1) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_each(None, 1) == 1


def test_an_interrupted_search_ends_the_run_and_is_not_a_caption(place):
    import fake_maker, types
    maker, calls = fake_maker.Maker(), []
    def captioner(path, seed):
        calls.append(path)
        found = maker(path, seed)
        return types.SimpleNamespace(**vars(found) | {"stopped": "interrupted" if len(calls) == 4 else "steps"})
    with pytest.raises(KeyboardInterrupt, match="3 captions.*same command"):
        go(place, captioner=captioner)
    assert len(calls) == 4 and len(runlog.RunLog(place / "out" / "captions.jsonl").read()) == 3


@pytest.mark.parametrize("line, told", [('{"id": "p1"}', "caption"), ('[]', "object"), ('{"id": "p1", "caption": 5, "seed": 1}', "caption"), ('nonsense', "JSON"), ('{"caption": "x", "seed": 1}', "id")])
def test_a_line_that_is_no_record_is_refused_with_its_number(place, line, told):
    go(place, limit=2)
    log = place / "out" / "captions.jsonl"
    log.write_text(log.read_text() + line + "\n")
    with pytest.raises(ValueError, match=rf"captions\.jsonl, line 3.*{told}"):
        go(place)


@pytest.mark.parametrize("text", ["[]", "5", "nonsense", '{"settings": 5}', '{"program": "another"}', ""])
def test_a_run_json_that_is_none_is_refused(place, text):
    go(place, limit=2)
    (place / "out" / "run.json").write_text(text)
    before = files(place / "out")
    with pytest.raises(ValueError, match=r"run\.json"):
        go(place)
    with pytest.raises(ValueError, match=r"run\.json"):
        go(place, overwrite=True)
    assert files(place / "out") == before


def test_blank_references_and_unknown_metrics_are_told_before_captioning(place):
    def captioner(path, seed):
        raise AssertionError("captioned first")
    (place / "blank.json").write_text(json.dumps({f"p{k}": ["a dog", " "] for k in range(6)}))
    for more, told in ((dict(references=place / "blank.json"), "p0"), (dict(references=place / "refs.json", metrics=["Bleu_9"]), "Bleu_9"),
                       (dict(references=place / "refs.json", metrics=["CLIPScore"]), "CLIPScore"), (dict(references=place / "refs.json", metrics=[]), "metrics"),
                       (dict(references=place / "refs.json", sample=3), "sample")):
        with pytest.raises((ValueError, TypeError), match=told):
            go(place, captioner=captioner, **more)
        assert not (place / "out").exists()
