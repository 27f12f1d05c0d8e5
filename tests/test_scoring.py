"Rooms 82 and 83: the programs, scoring and files against files."
import json
import math
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fuse_nb.metrics as metrics_room
import fuse_nb.programs as programs_room
import fuse_nb.results as results_room
import fuse_nb.scoring as room

CORENLP = Path(os.environ.get("FUSE_CORENLP") or Path(os.environ.get("FUSE_SHARED", "/work/shared")) / "corenlp")
HAS_JAVA = shutil.which("java") is not None
needs_java = pytest.mark.skipif(not HAS_JAVA, reason="no java on the search path: the tokenizer, METEOR and SPICE cannot run")
needs_corenlp = pytest.mark.skipif(not (HAS_JAVA and (CORENLP / "stanford-corenlp-3.6.0.jar").is_file()), reason="no java, or no CoreNLP 3.6.0 in FUSE_CORENLP: SPICE cannot run")

REFS = {1: ["a dog runs on the beach", "the brown dog plays in the sand"], 2: ["two cats sleep on a sofa", "a pair of cats on a red sofa"],
        3: ["a red bus in the street", "a bus stops at the corner of a street"], 4: ["a man rides a big wave", "the surfer rides a wave on a board"]}
CAPS = {1: "a dog runs on the beach", 2: "a cat sleeps on a red sofa", 3: "a red bus on a street", 4: "a man on a board"}
PLAIN = dict(tokenized=True, samples=50)


# --------------------------------------------------------- METEOR: perfect captions, locales

@pytest.fixture(scope="module")
def meteor():
    from pycocoevalcap.meteor.meteor import Meteor
    return Meteor()


@needs_java
@pytest.mark.parametrize("perfect", [[1], [1, 2], [1, 2, 3, 4]])
def test_meteor_has_an_interval_when_a_caption_is_a_reference(meteor, perfect):
    caps = CAPS | {i: REFS[i][-1] for i in perfect}
    report = room.score_report(caps, REFS, ["METEOR"], **PLAIN)
    value, values = meteor.compute_score(REFS, {i: [c] for i, c in caps.items()})
    assert report.scores["METEOR"] == pytest.approx(value, rel=1e-12) and "METEOR" in report.intervals, report.notes
    assert not [n for n in report.notes if "METEOR" in n]
    for ids in ([1, 1, 2], [perfect[-1]], [4, 3, 3], [2, 1, 4, 4]):    # sets drawn with replacement: as the program scores them
        drawn = meteor.compute_score(*({k: d[i] if isinstance(d[i], list) else [d[i]] for k, i in enumerate(ids)} for d in (REFS, caps)))[0]
        rows = report.rows["METEOR"][[list(caps).index(i) for i in ids]].sum(0)
        assert float(metrics_room.pooled("METEOR", rows, len(ids))) == pytest.approx(drawn, rel=1e-9)


@needs_java
def test_meteor_of_perfect_captions_can_be_compared_and_read_again(tmp_path):
    a, b = (room.score_report(c, REFS, ["METEOR"], **PLAIN) for c in (CAPS, CAPS | {1: "a cat"}))
    again = type(a).from_json(a.to_json(tmp_path / "a.json"))
    assert results_room.compare(again, b)["METEOR"] == results_room.compare(a, b)["METEOR"]
    assert results_room.compare(a, b)["METEOR"]["a"] == pytest.approx(a.scores["METEOR"], rel=1e-9)


LOCALES = [{"JAVA_TOOL_OPTIONS": "-Duser.language=de -Duser.country=DE"}, {"JAVA_TOOL_OPTIONS": "-Duser.language=it"}, {"JAVA_TOOL_OPTIONS": "-Duser.language=tr -Duser.country=TR"},
           {"JAVA_TOOL_OPTIONS": "-Duser.language.format=de"}, {"JDK_JAVA_OPTIONS": "-Duser.language=de"}, {"_JAVA_OPTIONS": "-Duser.language=de -Duser.language.format=fr"},
           {"JAVA_TOOL_OPTIONS": "-Duser.language=ar -Duser.country=EG -Duser.extensions=nu-arab"}, {"JAVA_TOOL_OPTIONS": "-Duser.language=th -Duser.country=TH -Duser.variant=TH"}]


@pytest.fixture(scope="module")
def plain(): return room.score_report(CAPS, REFS, ["METEOR", "CIDEr"], samples=0)


@needs_java
@pytest.mark.parametrize("env", LOCALES, ids=lambda e: next(iter(e.values())))
def test_no_locale_changes_a_score(monkeypatch, plain, env):
    for name, value in env.items(): monkeypatch.setenv(name, value)
    there = room.score_report(CAPS, REFS, ["METEOR", "CIDEr"], samples=0)
    assert there.missing == {} and there.scores == plain.scores and there.per_image == plain.per_image


@needs_corenlp
def test_no_locale_changes_spice(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSE_CORENLP", str(CORENLP)); monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Duser.country=TR")
    report = room.score_report(CAPS, REFS, ["SPICE"], **PLAIN)
    assert report.missing == {} and 0 < report.scores["SPICE"] < 1


# --------------------------------------------------------- SPICE's parts

@needs_corenlp
def test_spice_has_its_six_parts(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSE_CORENLP", str(CORENLP)); monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path))
    caps = {1: "a small red bus on a street", 2: "two big cats on a sofa"}
    refs = {1: ["a small red bus on a street"], 2: ["three small cats on a sofa"]}
    report = room.score_report(caps, refs, ["SPICE"], **PLAIN)
    parts = report.details["SPICE"]
    assert list(parts) == ["object", "attribute", "relation", "color", "count", "size"]
    # 1 is perfect in all it has (no count); 2 names the right objects and relation, another size and another number
    assert {k: (round(v["value"], 6), v["n"]) for k, v in parts.items()} == {
        "object": (1.0, 2), "relation": (1.0, 2), "attribute": (0.5, 2), "color": (1.0, 1), "count": (0.0, 1), "size": (0.5, 2)}
    assert "color" in report.table() and "relation" in report.table()
    assert type(report).from_json(report.to_json(tmp_path / "r.json")).details == report.details


# --------------------------------------------------------- what means nothing is said

def test_cider_of_one_image_is_said_to_mean_nothing():
    report = room.score_report({1: CAPS[1]}, {1: REFS[1]}, ["CIDEr", "Bleu_1"], **PLAIN)
    assert report.scores["CIDEr"] == 0 and any("CIDEr" in n and "one image" in n for n in report.notes)
    assert report.intervals == {} and any("interval" in n and "one image" in n for n in report.notes)


def test_cider_of_images_with_the_same_references_too():
    refs = {i: ["a dog runs on the beach"] for i in range(3)}
    report = room.score_report({i: "a dog runs on the beach" for i in range(3)}, refs, ["CIDEr"], **PLAIN)
    assert report.scores["CIDEr"] == 0 and any("CIDEr" in n and "every image" in n for n in report.notes)
    assert not any("CIDEr" in n for n in room.score_report(CAPS, REFS, ["CIDEr"], **PLAIN).notes)


def test_bleu_of_captions_that_are_too_short():
    report = room.score_report({1: "a dog", 2: "two cats"}, {1: REFS[1], 2: REFS[2]}, ["Bleu_4", "Bleu_2"], **PLAIN)
    told = [n for n in report.notes if "Bleu" in n]
    assert len(told) == 1 and "Bleu_4" in told[0] and "Bleu_2" not in told[0] and "4 words" in told[0]


def test_references_that_are_a_list_written_as_text():
    with pytest.raises(ValueError, match="the references of 1 .*a list written as a text"): room.score_report(CAPS, {i: str(r) for i, r in REFS.items()}, ["CIDEr"], **PLAIN)
    with pytest.raises(ValueError, match="the caption of 2 .*a list written as a text"): room.score_report(CAPS | {2: '["a cat"]'}, REFS, ["CIDEr"], **PLAIN)


# --------------------------------------------------------- doors

def put(tmp_path, **files):
    for name, data in files.items(): (tmp_path / f"{name}.json").write_text(json.dumps(data))
    return [tmp_path / f"{name}.json" for name in files]


def test_names_of_metrics():
    known = room.check_metrics
    assert known(["Bleu_1", " CIDEr"]) == known("Bleu_1, CIDEr") == known("Bleu_1,CIDEr,") == ("Bleu_1", "CIDEr")
    assert known("Bleu") == ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4") and known(None) == room.COCO_METRICS
    for bad in ("", " , ", []): 
        with pytest.raises(ValueError, match="metrics is empty"): known(bad)
    for bad in (5, [5], [None]):
        with pytest.raises(TypeError, match="metrics"): known(bad)
    with pytest.raises(ValueError, match="unknown metric 'bleu_1'") as told: known("bleu_1")
    assert "CLIPScore" not in str(told.value)    # offered only where it can be computed
    with pytest.raises(ValueError, match="unknown metric 'x'.*RefCLIPScore"): known("x", images=True)
    with pytest.raises(ValueError, match="CLIPScore needs images"): known("CLIPScore")


def test_metrics_are_looked_at_before_any_file(tmp_path):
    with pytest.raises(ValueError, match="unknown metric 'X'"): room.score_files(tmp_path / "no.json", tmp_path / "no.json", "X")


@pytest.mark.parametrize("kwargs", [dict(samples=5), dict(level=0.9), dict(seed=1)])
def test_score_captions_has_no_intervals(kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))}.*score_report"): room.score_captions(CAPS, REFS, ["CIDEr"], tokenized=True, **kwargs)


@pytest.mark.parametrize("kwargs, match", [(dict(samples=-1), "samples"), (dict(samples=2.5), "samples"), (dict(level=2), "level"), (dict(seed="a"), "seed"), (dict(timeout=0), "timeout"), (dict(timeout=math.nan), "timeout")])
def test_numbers_are_checked(kwargs, match):
    with pytest.raises((ValueError, TypeError), match=match): room.score_report(CAPS, REFS, ["CIDEr"], **PLAIN | kwargs)


def test_blank_references_are_told_at_the_door():
    room.check_references(REFS)
    for bad in ("", " \n", "...", "\u200b"):
        with pytest.raises(ValueError, match="empty reference for ids: 2"): room.check_references(REFS | {2: ["a dog", bad]})
    with pytest.raises(ValueError, match="no references for ids: 2"): room.check_references(REFS | {2: []})
    room.check_references(REFS | {2: ["a dog", "."]}, drop_empty=True)
    with pytest.raises(ValueError, match="no reference with a word in it for ids: 2"): room.check_references(REFS | {2: ["."]}, drop_empty=True)


def test_half_a_character_is_refused_by_its_id():
    with pytest.raises(ValueError, match="the caption of 2.*half a character"): room.score_report(CAPS | {2: "a \ud83d cat"}, REFS, ["CIDEr"], **PLAIN)
    with pytest.raises(ValueError, match="the references of 2.*half a character"): room.score_report(CAPS, REFS | {2: ["\udc00"]}, ["CIDEr"], **PLAIN)


def test_nothing_scored_is_an_error(tmp_path, monkeypatch, capsys):
    from fuse_nb.cli import main
    monkeypatch.setenv("PATH", ""); monkeypatch.delenv("JAVA_HOME", raising=False)
    files = put(tmp_path, p=CAPS, r=REFS)
    for metrics in ("METEOR", None, "CIDEr"):
        with pytest.raises(programs_room.MetricMissing, match="nothing could be scored.*needs Java"): room.score_files(*files, metrics)
    assert main(["score", *map(str, files), "--metrics", "METEOR"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and "nothing could be scored" in out.err and "Java" in out.err


@needs_java
def test_a_space_after_the_comma(tmp_path, capsys):
    from fuse_nb.cli import main
    assert main(["score", *map(str, put(tmp_path, p=CAPS, r=REFS)), "--metrics", "Bleu_1, CIDEr"]) == 0
    assert "CIDEr" in capsys.readouterr().out


# --------------------------------------------------------- CIDEr with a stored corpus

def test_stored_frequencies_give_the_score_within_the_corpus(tmp_path):
    whole = room.score_report(CAPS, REFS, ["CIDEr"], **PLAIN)
    path = room.write_document_frequencies(REFS, tmp_path / "df.json", tokenized=True)
    part = room.score_report({i: CAPS[i] for i in (3, 1)}, {i: REFS[i] for i in (1, 3)}, ["CIDEr"], document_frequencies=path, **PLAIN)
    assert part.per_image["CIDEr"] == pytest.approx({i: whole.per_image["CIDEr"][i] for i in (3, 1)}, rel=1e-12)
    one = room.score_report({1: CAPS[1]}, {1: REFS[1]}, ["CIDEr"], document_frequencies=json.loads(path.read_text()), **PLAIN)
    assert one.scores["CIDEr"] > 0 and one.scores["CIDEr"] == pytest.approx(whole.per_image["CIDEr"][1], rel=1e-12)
    assert not any("by construction" in n for n in one.notes)
    assert part.settings["document_frequencies"]["n"] == 4 and len(part.settings["document_frequencies"]["source"]) >= 16
    again = room.score_report(CAPS, REFS, ["CIDEr"], document_frequencies=path, **PLAIN)
    assert again.per_image["CIDEr"] == pytest.approx(whole.per_image["CIDEr"], rel=1e-12)
    with pytest.raises(ValueError, match="document frequencies"): results_room.compare(whole, again)


def test_stored_frequencies_are_what_a_loop_counts(tmp_path):
    data = json.loads(room.write_document_frequencies(REFS, tmp_path / "df.json", tokenized=True).read_text())
    holds = lambda gram: sum(any(f" {gram} " in f" {r} " for r in refs) for refs in REFS.values())
    assert data["n"] == 4 and data["counts"]["a"] == holds("a") == 4 and data["counts"]["the"] == holds("the") == 3
    assert all(k >= 2 and holds(g) == k for g, k in data["counts"].items())      # those of one image weigh as much as unseen ones and are left out
    other = json.loads(room.write_document_frequencies(REFS | {4: ["x"]}, tmp_path / "e.json", tokenized=True).read_text())
    assert data["source"] != other["source"]


@pytest.mark.parametrize("data, match", [
    ("[]", "must be an object"), ("{}", "has no"), ('{"n": 0, "source": "x", "words": "given", "counts": {}}', "n must be"),
    ('{"n": 2, "source": "x", "words": "given", "counts": {"a": 3}}', "'a'.*3"), ('{"n": 2, "source": "x", "words": "given", "counts": {"a": "b"}}', "'a'"),
    ('{"n": 2, "source": "x", "words": "given", "counts": 5}', "counts"), ("{", "JSON"), ('{"n": 2, "source": "x", "words": "PTB tokenizer", "counts": {}}', "PTB tokenizer"),
])
def test_broken_frequencies(tmp_path, data, match):
    (tmp_path / "df.json").write_text(data)
    with pytest.raises((ValueError, TypeError), match=match) as told: room.score_report(CAPS, REFS, ["CIDEr"], document_frequencies=tmp_path / "df.json", **PLAIN)
    assert "df.json" in str(told.value)


def test_frequencies_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.json"): room.score_report(CAPS, REFS, ["CIDEr"], document_frequencies=tmp_path / "no.json", **PLAIN)
    with pytest.raises(ValueError, match="document_frequencies.*CIDEr"): room.score_report(CAPS, REFS, ["Bleu_1"], document_frequencies={}, **PLAIN)


@needs_java
def test_frequencies_from_a_file_of_references(tmp_path):
    caps, refs = put(tmp_path, p=CAPS, r=REFS)
    path = room.write_document_frequencies(refs, tmp_path / "df.json")
    a, b = (room.score_files(caps, refs, "CIDEr", document_frequencies=d) for d in (path, None))
    assert a.scores == pytest.approx(b.scores, rel=1e-12)


# --------------------------------------------------------- files, with pictures

class Letters:
    "An image-text model whose vectors count letters; a picture's vector is that of its file's name."
    def encode(self, texts): v = np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], float); return v / np.linalg.norm(v, axis=1, keepdims=True)
    def encode_image(self, files): return self.encode([Path(f).stem for f in files])


def pictures(tmp_path, *names):
    (tmp_path / "photos").mkdir()
    for n in names: Image.new("RGB", (8, 8)).save(tmp_path / "photos" / n)
    return tmp_path / "photos"


def test_clipscore_of_files(tmp_path):
    folder = pictures(tmp_path, "dog.png", "COCO_val2014_000000000007.jpg")
    files = put(tmp_path, p={"dog": "a dog", "7": "coco"}, r={"dog": ["a dog"], "7": ["a val", "coco"]})
    model, images = Letters(), {"dog": folder / "dog.png", 7: str(folder / "COCO_val2014_000000000007.jpg"), "unused": folder / "no.png"}
    report = room.score_files(*files, ["CLIPScore", "RefCLIPScore"], images=images, image_model=model)
    by_hand = room.clip_scores(model, images, {"dog": "a dog", "7": "coco"}, {"dog": ["a dog"], "7": ["a val", "coco"]})
    assert report.per_image == by_hand and set(report.intervals) == {"CLIPScore", "RefCLIPScore"}
    assert room.score_files(*files, ["CLIPScore", "Bleu_1"], images=images, image_model=model, tokenized=True, samples=0).scores.keys() == {"CLIPScore", "Bleu_1"}


def test_pictures_are_found_by_their_file_names(tmp_path):
    folder = pictures(tmp_path, "first.png", "second.png")
    files = put(tmp_path, p=[{"image_id": 1, "caption": "first"}, {"image_id": 2, "caption": "second"}], r=[{"id": "first.png", "captions": ["a"]}, {"id": "second.png", "captions": ["b"]}])
    with pytest.raises(ValueError, match="different ids"): room.score_files(*files, "CLIPScore", images={}, image_model=Letters())
    files = put(tmp_path, p={"first": "first", "second": "second"}, r=[{"id": "first.png", "captions": ["a"]}, {"id": "second.png", "captions": ["b"]}])
    report = room.score_files(*files, "CLIPScore", images={0: folder / "first.png", 1: folder / "second.png"}, image_model=Letters())
    assert report.n == 2 and report.scores["CLIPScore"] > 0


def test_pictures_that_are_not_there(tmp_path):
    folder, files = pictures(tmp_path, "dog.png"), put(tmp_path, p={"dog": "a dog", "cat": "a cat"}, r={"dog": ["a dog"], "cat": ["a cat"]})
    images = {"dog": folder / "dog.png"}
    with pytest.raises(ValueError, match="images.*no picture for ids: cat"): room.score_files(*files, "CLIPScore", images=images, image_model=Letters())
    with pytest.raises(ValueError, match="image_model"): room.score_files(*files, images=images)
    with pytest.raises(ValueError, match="images"): room.score_files(*files, image_model=Letters())
    with pytest.raises(TypeError, match="image_model"): room.score_files(*files, images=images, image_model=5)
    with pytest.raises(TypeError, match="images must be a dict"): room.score_files(*files, images=folder, image_model=Letters())


def test_import_is_light():
    import subprocess, sys
    code = "import sys, fuse_nb.scoring; print([m for m in ('torch', 'transformers', 'matplotlib', 'pycocoevalcap', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
