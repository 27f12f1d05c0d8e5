"Chapter 11: scores, readers, comparisons and runs."
import json
import math
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import fuse_nb.metrics as metrics_room
import fuse_nb.reports as reports_room
import fuse_nb.results as results_room
import fuse_nb.datasets as datasets_room
import fuse_nb.programs as programs_room
import fuse_nb.scoring as scoring_room
import fuse_nb.runlog as runlog_room
import fuse_nb.runs as runs_room
import fuse_nb.ownership as ownership_room

SHARED = Path(os.environ.get("FUSE_SHARED", "/work/shared"))
CORENLP = Path(os.environ.get("FUSE_CORENLP") or SHARED / "corenlp")
HAS_JAVA = shutil.which("java") is not None
needs_java = pytest.mark.skipif(not HAS_JAVA, reason="no java on the search path: the tokenizer, METEOR and SPICE cannot run")
needs_corenlp = pytest.mark.skipif(not (HAS_JAVA and (CORENLP / "stanford-corenlp-3.6.0.jar").is_file()), reason="no java, or no CoreNLP 3.6.0 in FUSE_CORENLP: SPICE cannot run")

REFS = {391895: ["A man rides a motorbike on a dirt road.", "A man with a red helmet, on a small moped!", "Someone's motorcycle (old) near the hills."],
        "b": ["Two cats sleep on a sofa.", "A pair of cats lying down"], 7: ["A bowl of fruit; apples and pears.", "Some fruit in a bowl."]}
CAPS = {391895: "a man riding a motorcycle down a dirt road.", "b": "Two cats don't sleep on the red sofa", 7: "A bowl of ripe apples - on a table."}


# ---------------------------------------------------------------- scores

@pytest.fixture(scope="module")
def direct():
    "pycocoevalcap itself, called as its own evaluation does; and its METEOR's process, for more."
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    refs = PTBTokenizer().tokenize({i: [{"caption": c} for c in cs] for i, cs in REFS.items()})
    caps = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in CAPS.items()})
    bleu, per_bleu = Bleu(4).compute_score(refs, caps, verbose=0)
    out = {f"Bleu_{k + 1}": (bleu[k], per_bleu[k]) for k in range(4)}
    meteor = Meteor()
    for name, scorer in (("METEOR", meteor), ("ROUGE_L", Rouge()), ("CIDEr", Cider())): out[name] = scorer.compute_score(refs, caps)
    return out, meteor, refs, caps


def package_files(): return {p for p in Path(programs_room.importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0]).rglob("*") if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "All metrics but SPICE; nothing may be left in the package or in the folder of temporary files."
    before, place, programs_room.tempfile.tempdir = package_files(), tmp_path_factory.mktemp("tmp"), None
    try:
        programs_room.tempfile.tempdir = str(place)
        out = scoring_room.score_report(CAPS, REFS, [m for m in scoring_room.COCO_METRICS if m != "SPICE"], samples=200)
    finally: programs_room.tempfile.tempdir = None
    assert package_files() == before and list(place.iterdir()) == []
    return out


@needs_java
def test_equal_to_pycocoevalcap_called_directly(direct, report):
    direct = direct[0]
    assert report.missing == {} and set(report.scores) == set(direct)
    for metric, (value, values) in direct.items():
        assert report.scores[metric] == pytest.approx(value, rel=1e-12), metric
        assert list(report.per_image[metric].values()) == pytest.approx(list(values), rel=1e-12), metric
        assert list(report.per_image[metric]) == list(CAPS)
        assert metric in report.intervals, report.notes  # the rows add up to the program's value


@needs_java
def test_nothing_is_printed(capfd):
    scoring_room.score_report(CAPS, REFS, ["Bleu_4", "ROUGE_L"], samples=0)
    assert capfd.readouterr() == ("", "")


@needs_java
def test_line_breaks_do_not_shift_captions():
    broken = {1: "a dog\nruns", 2: "a cat\r\nsleeps\u2028well", 3: "a bus\x85stops\x0bhere\x0c"}
    assert programs_room.tokenize_captions({i: [c] for i, c in broken.items()}) == {1: ["a dog runs"], 2: ["a cat sleeps well"], 3: ["a bus stops here"]}


@needs_java
def test_punctuation_only_is_refused_by_id():
    with pytest.raises(ValueError, match="empty caption after tokenizing.*: b"): scoring_room.score_captions(CAPS | {"b": " ... !"}, REFS, ["CIDEr"])
    with pytest.raises(ValueError, match="empty reference after tokenizing.*: 7"): scoring_room.score_captions(CAPS, REFS | {7: ["fruit", "."]}, ["CIDEr"])


@needs_java
@settings(max_examples=1, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30), min_size=400, max_size=400))
def test_tokenizer_keeps_the_count_for_any_text(texts):
    out = programs_room.tokenize_captions({k: [t] for k, t in enumerate(texts)})
    assert [len(out[k]) for k in range(len(texts))] == [1] * len(texts)


@needs_corenlp
def test_spice_equals_the_package_itself(tmp_path, monkeypatch):
    spice = Path(programs_room.importlib.util.find_spec("pycocoevalcap.spice.spice").origin).parent
    copy = tmp_path / "unmodified_spice"
    (copy / "lib").mkdir(parents=True)
    for f in [*spice.glob("*.py"), spice / "spice-1.0.jar"]: shutil.copy(f, copy)
    for f in [*(spice / "lib").glob("*.jar"), *CORENLP.glob("*.jar")]: (copy / "lib" / f.name).symlink_to(f)
    monkeypatch.setenv("FUSE_CORENLP", str(CORENLP)); monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path / "cache")); monkeypatch.syspath_prepend(str(tmp_path))
    before = package_files()
    report = scoring_room.score_report(CAPS, REFS, ["SPICE"], samples=50)
    assert report.missing == {} and package_files() == before
    version = programs_room.java_version(programs_room.find_java())
    monkeypatch.setenv("JDK_JAVA_OPTIONS", " ".join(programs_room._spice_options(version, CORENLP / "nashorn" if version >= 15 else None)))
    (copy / "__init__.py").touch()
    from unmodified_spice.spice import Spice
    tokens = [programs_room.tokenize_captions({k: v if isinstance(v, list) else [v] for k, v in enumerate(d.values())}) for d in (REFS, CAPS)]
    value, values = Spice().compute_score(*tokens)
    assert report.scores["SPICE"] == pytest.approx(value, rel=1e-12) and 0 < value < 1
    assert list(report.per_image["SPICE"].values()) == pytest.approx([v["All"]["f"] for v in values])


def test_spice_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSE_CORENLP", str(tmp_path))
    if (Path(programs_room.importlib.util.find_spec("pycocoevalcap.spice.spice").origin).parent / "lib" / "stanford-corenlp-3.6.0.jar").exists(): pytest.skip("the installed pycocoevalcap has CoreNLP")
    with pytest.raises(programs_room.MetricMissing, match="CoreNLP 3.6.0.*FUSE_CORENLP"): programs_room._spice_jars(17)
    for end in ("", "-models"): (tmp_path / f"stanford-corenlp-3.6.0{end}.jar").touch()
    with pytest.raises(programs_room.MetricMissing, match="JavaScript engine.*nashorn"): programs_room._spice_jars(17)
    assert programs_room._spice_jars(11)[1] is None
    (tmp_path / "nashorn").mkdir(); (tmp_path / "nashorn" / "nashorn-core-15.4.jar").touch()
    assert programs_room._spice_jars(21)[1] == tmp_path / "nashorn"


def fake_java(tmp_path, body):
    "A program that says it is Java 17 and then does `body`."
    path = tmp_path / "java"
    path.write_text(f'#!/bin/sh\nif [ "$1" = -version ]; then echo \'openjdk version "17.0.1"\' >&2; exit 0; fi\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_java_every_metric_says_so_in_one_line(monkeypatch):
    monkeypatch.setenv("PATH", ""); monkeypatch.delenv("JAVA_HOME", raising=False)
    report = scoring_room.score_report(CAPS, REFS)
    assert report.scores == {} and set(report.missing) == set(scoring_room.COCO_METRICS)
    assert all("Java" in why and "\n" not in why for why in report.missing.values())
    with warnings.catch_warnings(record=True) as told: warnings.simplefilter("always"); assert scoring_room.score_captions(CAPS, REFS) == {}
    assert len(told) == 8 and "missing metric Bleu_1: needs Java" in str(told[0].message)
    with pytest.raises(programs_room.MetricMissing, match="CIDEr: needs Java"): scoring_room.score_captions(CAPS, REFS, ["CIDEr"])
    done = scoring_room.score_report(CAPS, REFS, tokenized=True, samples=0)  # with tokens given, only METEOR and SPICE need it
    assert set(done.missing) == {"METEOR", "SPICE"} and set(done.scores) == set(scoring_room.COCO_METRICS) - {"METEOR", "SPICE"}


def test_a_silent_meteor_is_ended(tmp_path):
    java = fake_java(tmp_path, "exec sleep 60")
    start = time.monotonic()
    report = scoring_room.score_report(CAPS, REFS, ["METEOR", "Bleu_1"], tokenized=True, java=java, timeout=0.5)
    assert time.monotonic() - start < 10
    assert "no answer for 0.5 s" in report.missing["METEOR"] and "Bleu_1" in report.scores


def test_a_dying_java_gives_its_reason(tmp_path):
    java = fake_java(tmp_path, "echo 'NOTE: Picked up JDK_JAVA_OPTIONS' >&2; echo 'java.lang.OutOfMemoryError: heap' >&2; exit 1")
    report = scoring_room.score_report(CAPS, REFS, ["METEOR"], tokenized=True, java=java)
    assert "OutOfMemoryError" in report.missing["METEOR"]
    report = scoring_room.score_report(CAPS, REFS, ["CIDEr"], java=java)
    assert "tokenizer failed: java.lang.OutOfMemoryError" in report.missing["CIDEr"]


def test_a_noisy_meteor_does_not_block(tmp_path):
    "More than a pipe holds on the error stream, before the first answer."
    java = fake_java(tmp_path, "i=0; while [ $i -lt 3000 ]; do echo 'some long warning that nobody reads, again and again' >&2; i=$((i+1)); done; exit 3")
    assert "METEOR" in scoring_room.score_report(CAPS, REFS, ["METEOR"], tokenized=True, java=java, timeout=20).missing


@pytest.mark.parametrize("caps, refs, error, match", [
    ({1: "a"}, {2: ["b"]}, ValueError, r"captions without references \(ids\): 1; references without a caption \(ids\): 2"),
    ({1: "a"}, {1: ["b"], 2: ["c"]}, ValueError, r"references without a caption \(ids\): 2.*subset=True"),
    ({1: "a", 2: "c"}, {1: ["b"]}, ValueError, r"captions without references \(ids\): 2"),
    ({1: " \n"}, {1: ["b"]}, ValueError, "empty caption for ids: 1"),
    ({1: "a"}, {1: ["b", ""]}, ValueError, "empty reference for ids: 1"),
    ({1: "a"}, {1: []}, ValueError, "no references for ids: 1"),
    ({1: ["a", "b"]}, {1: ["b"]}, ValueError, "one caption an image; not so for ids: 1"),
    ({1: None}, {1: ["b"]}, TypeError, "caption of 1 .*NoneType"),
    ({1: "a"}, {1: [3]}, TypeError, "references of 1.*int"),
    ({}, {}, ValueError, "predictions is empty"),
    ({1: "a", "1": "b"}, {1: ["b"]}, ValueError, "predictions: two ids are the same"),
    (["a"], {1: ["b"]}, TypeError, "predictions must be a dict"),
])
def test_bad_input_is_named(caps, refs, error, match):
    with pytest.raises(error, match=match): scoring_room.score_captions(caps, refs, ["Bleu_1"], tokenized=True)


def test_ids_match_as_text_and_subsets_are_told():
    report = scoring_room.score_report({"1": ["a dog"], 2: "a cat"}, {1: ["a dog"], "2": ["the cat"], 3: ["a bus"]}, ["ROUGE_L"], subset=True, tokenized=True)
    assert list(report.per_image["ROUGE_L"]) == ["1", 2] and report.per_image["ROUGE_L"]["1"] == pytest.approx(1.0) and "3" in report.notes[0]


def test_empty_captions_can_be_left_out():
    caps, refs = {1: "a dog", 2: " ... ", 3: "a bus"}, {1: ["a dog"], 2: ["a cat"], 3: ["a bus", ""]}
    report = scoring_room.score_report(caps, refs, ["Bleu_1"], tokenized=True, drop_empty=True)
    assert report.n == 2 and report.scores["Bleu_1"] == pytest.approx(1) and ["2" in report.notes[0], "3" in report.notes[1]] == [True, True]
    with pytest.raises(ValueError, match="every caption is empty"): scoring_room.score_report({2: "!"}, {2: ["a cat"]}, ["Bleu_1"], tokenized=True, drop_empty=True)
    with pytest.raises(ValueError, match="no reference with a word in it for ids: 1"): scoring_room.score_report({1: "a"}, {1: ["."]}, ["Bleu_1"], tokenized=True, drop_empty=True)


def test_unknown_metrics():
    with pytest.raises(ValueError, match="unknown metric 'BLEU'"): scoring_room.score_captions(CAPS, REFS, ["BLEU"])
    with pytest.raises(ValueError, match="CLIPScore needs images"): scoring_room.score_captions(CAPS, REFS, ["CLIPScore"])
    with pytest.raises(ValueError, match="metrics is empty"): scoring_room.score_captions(CAPS, REFS, [])


def test_report_survives_json(tmp_path):
    report = scoring_room.score_report({i: f"a {w} dog" for i, w in enumerate("red blue big old".split())}, {i: ["a big dog"] for i in range(4)}, ["Bleu_2", "CIDEr"], tokenized=True, samples=50)
    report.to_json(tmp_path / "scores.json")
    again = reports_room.ScoreReport.from_json(tmp_path / "scores.json")
    assert again.scores == report.scores and again.per_image == report.per_image and again.intervals == report.intervals
    assert results_room.compare(report, again, samples=20)["Bleu_2"]["p"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"] and "Bleu_2" in report.table(percent=True)
    with pytest.raises(ValueError, match="not a score report"): reports_room.ScoreReport.from_json({"scores": {}})


# ---------------------------------------------------------------- intervals and comparisons

@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_permutation_is_exact_on_small_sets(values, seed):
    "Against all 2**n swaps written out."
    a, b = {i: v for i, v in enumerate(values)}, {i: 0.0 for i in range(len(values))}
    signs = [[1 - 2 * (k >> i & 1) for i in range(len(values))] for k in range(2**len(values))]
    seen = abs(sum(values)) / len(values)
    means = [abs(sum(s * v for s, v in zip(row, values))) / len(values) for row in signs]
    expected = [sum(m >= seen + e for m in means) / len(means) for e in (1e-9, -1e-9)]  # ties may fall on either side of rounding
    assert expected[0] <= results_room.compare_values(a, b, samples=1000, seed=seed)["p"] <= expected[1]


def test_comparison_tells_a_difference_from_none():
    rng = np.random.default_rng(0)
    a = {i: x for i, x in enumerate(rng.normal(size=40))}
    better, same = {i: x - 1 + 0.1 * rng.normal() for i, x in a.items()}, {i: x + 0.1 * rng.normal() for i, x in a.items()}
    down = results_room.compare_values(better, a, alternative="less")
    assert down["p"] < 0.001 and down["high"] < 0 and results_room.compare_values(better, a, alternative="greater")["p"] > 0.99
    assert results_room.compare_values(same, a)["p"] > 0.05
    with pytest.raises(ValueError, match="different ids.*40"): results_room.compare_values(a | {40: 1.0}, better)
    with pytest.raises(ValueError, match="alternative"): results_room.compare_values(a, better, alternative="smaller")


def test_permutation_level_is_kept():
    "Under no difference, p <= 0.1 in about a tenth of the cases."
    rng = np.random.default_rng(1)
    p = [results_room.compare_values(*({i: x for i, x in enumerate(rng.normal(size=12))} for _ in range(2)), samples=200)["p"] for _ in range(200)]
    assert 0.03 < np.mean(np.array(p) <= 0.1) < 0.19


def test_swapped_rows_give_the_corpus_score_of_swapped_captions():
    "BLEU is not a mean: the permutation must equal scoring really swapped captions."
    refs = {i: [f"the {w} dog runs on the {w} beach today", f"a {w} dog is here"] for i, w in enumerate("red big old wet".split())}
    a = {i: f"a {w} dog runs on a beach" for i, w in enumerate("red big old wet".split())}
    b = {0: "the red dog runs on the red beach today", 1: "cat", 2: "a old dog", 3: "dog runs on the wet beach today"}
    score = lambda c: scoring_room.score_report(c, refs, ["Bleu_2"], tokenized=True, samples=0)
    ra, rb = score(a), score(b)
    seen = abs(ra.scores["Bleu_2"] - rb.scores["Bleu_2"])
    swaps = [({i: (b if k >> i & 1 else a)[i] for i in range(4)}, {i: (a if k >> i & 1 else b)[i] for i in range(4)}) for k in range(16)]
    diffs = [abs(score(x).scores["Bleu_2"] - score(y).scores["Bleu_2"]) for x, y in swaps]
    result = results_room.compare(ra, rb, samples=100)["Bleu_2"]
    assert result["p"] == pytest.approx(sum(d >= seen - 1e-12 for d in diffs) / 16) and result["difference"] == pytest.approx(ra.scores["Bleu_2"] - rb.scores["Bleu_2"])


def test_comparison_refuses_other_references():
    one = scoring_room.score_report({1: "a dog"}, {1: ["a dog"]}, ["Bleu_1"], tokenized=True)
    two = scoring_room.score_report({1: "a dog"}, {1: ["the dog"]}, ["Bleu_1"], tokenized=True)
    with pytest.raises(ValueError, match="same"): results_room.compare(one, two)
    with pytest.raises(ValueError, match="CIDEr not in both"): results_room.compare(one, one, ["CIDEr"])
    with pytest.raises(TypeError, match="a must be a ScoreReport"): results_room.compare({}, one)


@needs_java
def test_meteor_and_bleu_resample_as_the_program_would(direct, report):
    "Score sets drawn with replacement: the rows' sum must give what the programs give for them."
    from pycocoevalcap.bleu.bleu import Bleu
    _, meteor, refs, caps = direct
    for ids in ([391895, 391895, 7], ["b"], [7, "b", 7, 7]):
        drawn = [{k: d[i] for k, i in enumerate(ids)} for d in (refs, caps)]
        for m, value in (("METEOR", meteor.compute_score(*drawn)[0]), ("Bleu_4", Bleu(4).compute_score(*drawn, verbose=0)[0][3])):
            rows = report.rows[reports_room.rows_name(m)][[list(CAPS).index(i) for i in ids]].sum(0)
            assert float(metrics_room.pooled(m, rows, len(ids))) == pytest.approx(value, rel=1e-9)


class Words:
    "An image-text model whose vectors count letters; a picture's vector is that of its file's name."
    def encode(self, texts): v = np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], float); return v / np.linalg.norm(v, axis=1, keepdims=True)
    def encode_image(self, files): return self.encode([Path(f).stem for f in files])


def test_clip_scores_by_hand():
    model, images = Words(), {1: "a dog.png", "2": "zzz.png"}
    out = scoring_room.clip_scores(model, images, {1: "a dog", 2: "a cat"}, {1: ["a dog"], 2: ["some", "a cat"]}, prefix="")
    assert out["CLIPScore"] == pytest.approx({1: 2.5, 2: 0.0}) and out["RefCLIPScore"] == pytest.approx({1: 2 * 2.5 / 3.5, 2: 0.0})
    report = scoring_room.score_report({1: "a dog", 2: "a cat"}, {1: ["a dog"], 2: ["a cat"]}, ["CLIPScore", "RefCLIPScore", "Bleu_1"], images=images, image_model=model, tokenized=True)
    assert set(report.scores) == {"CLIPScore", "RefCLIPScore", "Bleu_1"} == set(report.intervals)
    with pytest.raises(ValueError, match="no picture for ids: 3"): scoring_room.clip_scores(model, images, {3: "a"})


def test_sentiment_accuracy():
    classify = lambda texts: [1.0 if "good" in t else -1.0 for t in texts]
    assert results_room.sentiment_accuracy({1: "good dog", 2: "bad dog"}, classify) == {"accuracy": 0.5, "per_image": {1: True, 2: False}}
    assert results_room.sentiment_accuracy({1: "bad dog"}, classify, "negative")["accuracy"] == 1.0
    with pytest.raises(ValueError, match="label"): results_room.sentiment_accuracy({1: "a"}, classify, "angry")


# ---------------------------------------------------------------- files

COCO = {"images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}, {"id": 5, "file_name": "COCO_val2014_000000000005.jpg"}],
        "annotations": [{"image_id": 391895, "id": 1, "caption": "A man."}, {"image_id": 5, "id": 2, "caption": "A dog."}, {"image_id": 391895, "id": 3, "caption": "A rider."}]}
NOCAPS = {"images": [{"id": 0, "file_name": "0013ea2087020901.jpg", "open_images_id": "0013ea2087020901", "domain": "in-domain"}], "annotations": [{"image_id": 0, "id": 0, "caption": "A baby."}, {"image_id": 0, "id": 1, "caption": "A child."}]}
KARPATHY = {"dataset": "coco", "images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "imgid": 0, "cocoid": 391895, "split": "test", "sentences": [{"tokens": ["a", "man"], "raw": "A man."}, {"tokens": ["a", "rider"], "raw": "A rider."}]},
                                          {"filepath": "val2014", "filename": "COCO_val2014_000000000005.jpg", "imgid": 1, "cocoid": 5, "split": "val", "sentences": [{"tokens": ["a", "dog"]}]}]}
SENTICAP = {"images": [{"filename": "COCO_val2014_000000391895.jpg", "imgid": 0, "split": "test", "sentences": [{"raw": "a nice man", "sentiment": 1}, {"raw": "a sad man", "sentiment": 0}]}]}
FLICKR = {"images": [{"filename": "1000092795.jpg", "imgid": 0, "split": "test", "sentences": [{"raw": "Two men."}]}]}
MAGIC = [{"split": "test", "image_name": "COCO_val2014_000000391895.jpg", "captions": ["A man.", "A rider."], "prediction": "a man on a road"}]
OURS = [{"id": 391895, "file": "images/COCO_val2014_000000391895.jpg", "captions": ["A man.", "A rider."]}]
NAME = "COCO_val2014_000000391895.jpg"


def put(tmp_path, data, name="x.json"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(d) + "\n" for d in data) if name.endswith("l") else json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("data, name, kwargs, expected", [
    (COCO, "x.json", {}, {391895: ["A man.", "A rider."], 5: ["A dog."]}),
    (NOCAPS, "x.json", {}, {0: ["A baby.", "A child."]}),
    (KARPATHY, "x.json", {"split": "test"}, {391895: ["A man.", "A rider."]}),
    (KARPATHY, "x.json", {}, {391895: ["A man.", "A rider."], 5: ["a dog"]}),
    (SENTICAP, "x.json", {"sentiment": "positive"}, {391895: ["a nice man"]}),
    (SENTICAP, "x.json", {}, {391895: ["a nice man", "a sad man"]}),
    (FLICKR, "x.json", {}, {"1000092795": ["Two men."]}),
    (MAGIC, "x.json", {}, {NAME: ["A man.", "A rider."]}),
    (OURS, "x.json", {}, {391895: ["A man.", "A rider."]}),
    (OURS, "x.jsonl", {}, {391895: ["A man.", "A rider."]}),
    ({"7": ["A man."], "8": ["A dog.", "A cat."]}, "x.json", {}, {"7": ["A man."], "8": ["A dog.", "A cat."]}),
    ([{"image_id": 5, "caption": "A dog."}, {"image_id": 5, "caption": "A hound."}], "x.jsonl", {}, {5: ["A dog.", "A hound."]}),
])
def test_read_references(tmp_path, data, name, kwargs, expected): assert datasets_room.read_references(put(tmp_path, data, name), **kwargs) == expected


@pytest.mark.parametrize("data, name, expected", [
    ([{"image_id": 391895, "caption": "a man"}], "x.json", {391895: "a man"}),
    ([{"image_id": 391895, "caption": "a man"}], "x.jsonl", {391895: "a man"}),
    (MAGIC, "x.json", {NAME: "a man on a road"}),
    ({"7": "a man"}, "x.json", {"7": "a man"}),
    ({"7": ["a man"]}, "x.json", {"7": "a man"}),
    ([{"id": 3, "file": "3.jpg", "caption": "a man", "loss": 1.0, "terms": {}, "seconds": 1, "seed": 0, "versions": {}}], "captions.jsonl", {3: "a man"}),
    ([{"file": "3.jpg", "caption": "a man"}], "x.json", {"3.jpg": "a man"}),
])
def test_read_predictions(tmp_path, data, name, expected): assert datasets_room.read_predictions(put(tmp_path, data, name)) == expected


@pytest.mark.parametrize("text, match", [
    ("", "is empty"), ("{", "neither JSON"), ('{"id": 1, "caption": "a"}\n{"id": 2, "capt', None), ('{"id": 1}\n{"id"\n{"id": 2}\n', "line 2"),
    ('[{"caption": "a"}]', "names no image"), ("[1]", "record 0 must be an object"), ("3", "holds a int"), ("[]", "no images"),
    ('[{"id": 1, "caption": "a"}, {"id": "1", "caption": "b"}]', "more than one record for ids: 1"),
    ('[{"id": 1, "captions": ["a", "b"]}]', "holds references"), ('[{"id": 1, "caption": 5}]', "int"), ('[{"id": 1}, {"id": 2, "caption": "a"}]', "no caption for ids: 1"),
])
def test_broken_files(tmp_path, text, match):
    path = tmp_path / "x.json"
    path.write_text(text)
    if match is None:
        with pytest.warns(UserWarning, match="cut short"): assert datasets_room.read_predictions(path) == {1: "a"}
        return
    with pytest.raises((ValueError, TypeError), match=match): datasets_room.read_predictions(path)


def test_more_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"): datasets_room.read_references(tmp_path / "nowhere.json")
    (tmp_path / "b.json").write_bytes(b'{"1": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"): datasets_room.read_references(tmp_path / "b.json")
    with pytest.raises(ValueError, match="no split 'dev'; it has test, val"): datasets_room.read_references(put(tmp_path, KARPATHY), split="dev")
    with pytest.raises(ValueError, match="two images have the id 5"): datasets_room.read_references(put(tmp_path, {"images": [{"id": 5}, {"id": 5}], "annotations": []}))
    with pytest.raises(ValueError, match="holds no references"): datasets_room.read_references(put(tmp_path, {"images": [{"id": 5}]}))
    with pytest.raises(ValueError, match="sentiment must be"): datasets_room.read_references(put(tmp_path, SENTICAP), sentiment="happy")


@pytest.mark.parametrize("refs", [COCO, KARPATHY, OURS])
@pytest.mark.parametrize("caps", [MAGIC, {"391895": "a man on a road"}, [{"image_id": 391895, "caption": "a man on a road"}], {"COCO_val2014_000000391895": "a man on a road"}])
def test_one_photograph_under_many_names(tmp_path, refs, caps):
    report = scoring_room.score_files(put(tmp_path, caps, "caps.json"), put(tmp_path, refs, "refs.json"), ["Bleu_1"], subset=True, tokenized=True, samples=0)
    assert report.n == 1 and list(map(str, report.per_image["Bleu_1"])) == ["391895"]


def test_score_magics_own_file(tmp_path):
    path = put(tmp_path, MAGIC)
    assert scoring_room.score_files(path, path, ["ROUGE_L"], tokenized=True, samples=0).n == 1
    with pytest.raises(ValueError, match="captions without references.*: 99"): scoring_room.score_files(put(tmp_path, {"99": "a"}, "c.json"), path, ["ROUGE_L"])


# ---------------------------------------------------------------- runs

FAKE = '''
import os, random, time, types
class Maker:
    def __init__(self, delay=0.0, bad=()): self.delay, self.bad = delay, bad
    def __call__(self, path, seed):
        time.sleep(float(os.environ.get("FAKE_DELAY", 0)))
        if any(b in str(path) for b in self.bad): raise RuntimeError("cannot see " + str(path))
        r = random.Random(seed)
        return types.SimpleNamespace(text="a " + " ".join(r.choice("dog cat runs on red blue beach sofa".split()) for _ in range(6)), loss=r.random(), terms={"lm": r.random(), "image": float("inf")}, seconds=self.delay)
'''
RUN = "import sys, json; from fuse_nb.runs import evaluate_folder; evaluate_folder(**json.loads(sys.argv[1]))"


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder of 12 pictures, references for them, and a module with a captioner."
    (tmp_path / "code").mkdir(); (tmp_path / "code" / "fake_captioner.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "photos").mkdir()
    for k in range(12): Image.new("RGB", (8, 8), (20 * k, 0, 0)).save(tmp_path / "photos" / f"COCO_val2014_{k + 100:012d}.jpg")
    put(tmp_path, [{"id": k + 100, "file": f"photos/COCO_val2014_{k + 100:012d}.jpg", "captions": ["a dog runs on red beach", "a cat on the blue sofa"]} for k in range(12)], "references.json")
    return tmp_path


def run(place, out="out", captioner="fake_captioner:Maker", **kwargs):
    kwargs = dict(images=place / "photos", references=place / "references.json", metrics=["Bleu_1", "CIDEr"], tokenized=True, samples=20, progress=False) | kwargs
    return runs_room.evaluate_folder(captioner, out=place / out, **kwargs)


def told(run): return [(r["id"], r["caption"], r["loss"], r["seed"]) for r in run.captions]


def start(place, delay, **kwargs):
    "The same in a process of its own, with a captioner that takes `delay` seconds."
    kwargs = dict(captioner="fake_captioner:Maker", images=str(place / "photos"), out=str(place / "out"), references=str(place / "references.json"), metrics=["Bleu_1"], tokenized=True, progress=False) | kwargs
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "code"), *filter(None, sys.path)]), "FAKE_DELAY": str(delay)}
    return subprocess.Popen([sys.executable, "-c", RUN, json.dumps(kwargs)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_run_leaves_what_it_promises(place, capfd):
    result = run(place, progress=True)
    assert "captions: 100%" in capfd.readouterr().err
    lines = [json.loads(l) for l in (place / "out" / "captions.jsonl").read_text().splitlines()]
    assert lines == result.captions and [l["id"] for l in lines] == list(range(100, 112))
    assert set(lines[0]) == {"id", "file", "caption", "loss", "terms", "seconds", "seed", "picture", "versions"} and lines[0]["terms"]["image"] is None
    scores, info = (json.loads((place / "out" / f).read_text()) for f in ("scores.json", "run.json"))
    assert scores["CIDEr"] == result.report.scores["CIDEr"] and info["complete"] and info["settings"] == {} and "fuse_nb" in info["versions"]
    expected = scoring_room.score_captions({l["id"]: l["caption"] for l in lines}, datasets_room.read_references(place / "references.json"), ["CIDEr"], tokenized=True)
    assert scores["CIDEr"] == expected["CIDEr"]


def test_captions_do_not_depend_on_order_or_company(place):
    whole = told(run(place))
    files = sorted((place / "photos").iterdir(), reverse=True)[:5]
    few = told(run(place, "few", images=files, references=None))
    assert set(few) <= set(whole) and len(few) == 5 and [r[0] for r in few] == [111, 110, 109, 108, 107]
    assert told(run(place, "other", seed=1)) != whole


def test_without_references_it_captions_only(place):
    result = run(place, references=None)
    assert len(result.captions) == 12 and result.report is None and not (place / "out" / "scores.json").exists()
    assert result.captions[0]["id"] == 100  # COCO's number in the name


def test_two_workers_give_the_same_captions_as_one(place):
    one, two = run(place, "one"), run(place, "two", workers=2)
    assert told(one) == told(two)
    bare = lambda r: [json.dumps({k: v for k, v in c.items() if k != "seconds"}) for c in r.captions]
    assert bare(one) == bare(two)
    assert sorted(p.name for p in (place / "two").iterdir() if not p.name.startswith(".")) == ["captions.jsonl", "run.json", "scores.json"]
    assert json.loads((place / "two" / "run.json").read_text())["workers"] == 2


def test_started_by_torchrun(place):
    "The way of several machines: every process calls evaluate_folder, here two on one machine, and a log of an earlier worker is there."
    (place / "out").mkdir()
    script = place / "script.py"
    script.write_text(f"from fake_captioner import Maker\nfrom fuse_nb.runs import evaluate_folder\n"
                      f"r = evaluate_folder(Maker(), {str(place / 'photos')!r}, {str(place / 'out')!r}, {str(place / 'references.json')!r}, metrics=['Bleu_1'], tokenized=True, progress=False)\nprint('scored', r.report is not None)")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "code"), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split("\n")) == ["", "scored False", "scored True"]
    assert [json.loads(l)["caption"] for l in (place / "out" / "captions.jsonl").read_text().splitlines()] == [r[1] for r in told(run(place, "one"))]
    assert not list((place / "out").glob("captions.0*")) and json.loads((place / "out" / "run.json").read_text())["complete"]


def test_killed_and_continued(place):
    "kill -9 in the middle: the lines that were there stay byte for byte, the rest follows, and the captions are those of a run that nobody killed."
    log, process = place / "out" / "captions.jsonl", start(place, 0.1)
    while not (log.exists() and log.read_bytes().count(b"\n") >= 4): assert process.poll() is None, process.stderr.read().decode(); time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL); process.wait()
    kept = log.read_bytes()
    assert 4 <= kept.count(b"\n") < 12
    with open(log, "ab") as f: f.write(b'{"id": 111, "caption": "half a l')
    result = run(place)
    assert log.read_bytes().startswith(kept) and len(result.captions) == 12
    assert told(result) == told(run(place, "fresh"))


def test_killed_with_workers(place):
    "The workers of a killed run end by themselves, and the next run takes over what they did."
    process = start(place, 3.0, workers=2)
    count = lambda: sum(f.read_bytes().count(b"\n") for f in (place / "out").glob("captions.0*.jsonl"))
    while count() < 1: assert process.poll() is None, process.stderr.read().decode(); time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL); process.wait()
    with ownership_room.locked(place / "out" / ".workers", wait=8.0): pass  # alive, they would hold this for 12 s and more
    assert count() < 4
    result = run(place)
    assert told(result) == told(run(place, "fresh")) and not list((place / "out").glob("captions.0*"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=5, unique=True), st.data())
def test_a_log_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, texts, data):
    log = runlog_room.RunLog(tmp_path_factory.mktemp("log") / "captions.jsonl")
    for k, t in enumerate(texts): log.append({"id": k, "caption": t})
    whole = log.path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    log.path.write_bytes(whole[:cut])
    assert [r["caption"] for r in log.read()] == texts[:whole[:cut].count(b"\n")]
    assert log.damaged == (cut > 0 and whole[cut - 1:cut] != b"\n")


def test_a_line_that_cannot_be_written_leaves_no_trace(tmp_path, monkeypatch):
    log = runlog_room.RunLog(tmp_path / "captions.jsonl")
    log.append({"id": 1, "caption": "a dog"})
    before = log.path.read_bytes()
    def full(fd): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(runs_room.os, "fsync", full)
        with pytest.raises(runlog_room.RunStopped, match="cannot write .*No space left"): log.append({"id": 2, "caption": "a cat"})
    assert log.path.read_bytes() == before
    log.append({"id": 3, "caption": "a bus"})
    assert [r["id"] for r in log.read()] == [1, 3]


def test_bad_pictures_are_recorded_and_skipped(place):
    (place / "photos" / "COCO_val2014_000000000103.jpg").write_bytes(b"this is no picture")
    result = run(place, settings={"bad": ["000000000105"]})
    assert [(e["id"], e["error"].split(":")[0]) for e in result.errors] == [(103, "ValueError"), (105, "RuntimeError")]
    assert len(result.captions) == 10 and result.report.n == 10 and any("103, 105" in n for n in result.report.notes)
    Image.new("RGB", (8, 8)).save(place / "photos" / "COCO_val2014_000000000103.jpg")
    again = run(place, settings={"bad": ["000000000105"]})  # tried again
    assert [e["id"] for e in again.errors] == [105] and len(again.captions) == 11


def test_a_broken_captioner_stops_the_run(place):
    with pytest.raises(runlog_room.RunStopped, match="10 pictures in a row.*cannot see"): run(place, settings={"bad": ["jpg"]})
    with pytest.raises(runlog_room.RunStopped, match="no picture could be captioned.*cannot see"): run(place, "few", settings={"bad": ["jpg"]}, limit=3)
    with pytest.raises(ValueError, match="captioner.*no_such"): run(place, "w", captioner="fake_captioner:no_such", workers=2)
    with pytest.raises(ValueError, match="'module:name'"): run(place, "n", captioner="fake_captioner")
    with pytest.raises(ValueError, match="given by name"): run(place, "l", captioner=lambda p, s: None, workers=2)
    with pytest.raises(ValueError, match="workers must be"): run(place, "z", workers=0)


def test_another_runs_folder_is_refused(place):
    run(place, settings={"delay": 0.0})
    with pytest.raises(ValueError, match=r"another run.*settings \(delay: 0.0 there, 0.001 here\).*overwrite"): run(place, settings={"delay": 0.001})
    with pytest.raises(ValueError, match="seed"): run(place, settings={"delay": 0.0}, seed=3)
    with pytest.raises(ValueError, match="no picture in images, for ids 1"): run(place, settings={"delay": 0.0}, images=[place / "photos" / "COCO_val2014_000000000100.jpg"])
    assert run(place, settings={"delay": 0.001}, overwrite=True).captions[0]["seconds"] == 0.001
    (place / "odd").mkdir(); (place / "odd" / "captions.jsonl").write_text('{"id": 100, "caption": "someone else"}\n')
    with pytest.raises(ValueError, match="another run"): run(place, "odd")


def test_bad_folders_and_ids(place):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"): run(place, images=place / "nowhere")
    (place / "empty").mkdir(); (place / "empty" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="no picture in"): run(place, images=place / "empty")
    with pytest.raises(ValueError, match="references are for other pictures: ids in images 100.*ids in references 1, 2"): run(place, references=put(place, {"1": ["a"], "2": ["b"]}, "other.json"))
    Image.new("RGB", (8, 8)).save(place / "photos" / "100.png")
    with pytest.raises(ValueError, match="more than one record for ids: 100"): run(place)


def test_some_without_references(place):
    Image.new("RGB", (8, 8)).save(place / "photos" / "extra.png")
    result = run(place)
    assert len(result.captions) == 13 and result.report.n == 12 and any("extra" in n for n in result.report.notes)
    assert len(run(place, "karpathy", references=put(place, {"images": [{"cocoid": 101, "filename": "COCO_val2014_000000000101.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}]}, "k.json"), split="test").captions) == 1


def test_disk_full(place):
    "A limit on the size of files stands for a full disk: the run stops, the lines are whole, and it goes on when there is room."
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY)); " + RUN
    kwargs = dict(captioner="fake_captioner:Maker", images=str(place / "photos"), out=str(place / "out"), progress=False)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "code"), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code, json.dumps(kwargs)], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "RunStopped: cannot write" in done.stderr
    data = (place / "out" / "captions.jsonl").read_bytes()
    assert data.endswith(b"\n") and 1 <= data.count(b"\n") < 12 and all(json.loads(l)["caption"] for l in data.splitlines())
    assert told(run(place, references=None)) == told(run(place, "fresh", references=None))
    assert (place / "out" / "captions.jsonl").read_bytes().startswith(data)


def test_a_full_disk_in_the_captioner_stops_too(place):
    def full(path, seed): raise OSError(28, "No space left on device")
    with pytest.raises(runlog_room.RunStopped, match="disk is full"): run(place, captioner=full)


def test_two_runs_cannot_share_a_folder(place):
    (place / "out").mkdir()
    with ownership_room.locked(place / "out" / ".lock"), pytest.raises(runlog_room.RunStopped, match="another run is writing"): run(place)


def test_seeds_are_stable():
    assert runlog_room.picture_seed(0, 5) == runlog_room.picture_seed(0, "5") != runlog_room.picture_seed(1, 5)
    seeds = {runlog_room.picture_seed(0, i) for i in range(5000)}
    assert len(seeds) > 4990 and min(seeds) >= 0 and max(seeds) < 2**31


# ---------------------------------------------------------------- tables and figures

def test_the_table_marks_published_rows():
    table = results_room.captioning_table({"rows": [{"method": "ours", "n": 32, "scores": {"CIDEr": 12.34}, "intervals": {"CIDEr": [10.0, 15.0]}}]})
    ours, *published = table.splitlines()[2:]
    assert "12.3 (10.0 to 15.0)" in ours and "measured here" in ours and len(published) == 6
    assert all("published, not comparable" in r for r in published) and any("14.6" in r for r in published)


def test_against_published():
    report = types.SimpleNamespace(scores={"CIDEr": 0.4929, "Bleu_1": 0.5})
    assert "| CIDEr | 49.29 | 49.3 | -0.01 |" in results_room.against_published(report, "magic") and "Bleu_1" not in results_room.against_published(report, "MAGIC")
    with pytest.raises(ValueError, match="method must begin"): results_room.against_published(report, "Nobody")


def test_contact_sheet(place):
    import matplotlib.pyplot as plt
    files = sorted((place / "photos").iterdir())[:5]
    fig = results_room.contact_sheet([(f, ["a caption that is long enough to be wrapped", "CIDEr 0.3"]) for f in files], columns=3, title="five pictures")
    assert len(fig.axes) == 6
    plt.close(fig)
    with pytest.raises(ValueError, match="pictures is empty"): results_room.contact_sheet([])


def test_import_is_light():
    code = "import sys, fuse_nb.runs; print([m for m in ('torch', 'transformers', 'matplotlib', 'accelerate', 'pycocoevalcap') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}).stdout.strip() == "[]"


@needs_java
def test_score_command_takes_the_readers_options(tmp_path, capsys):
    from fuse_nb.cli import main
    for name, data in dict(p={"1": "a dog runs", "2": ""}, r={"1": ["a dog runs on the beach"], "2": ["a cat"], "3": ["a bus"]}).items(): (tmp_path/f"{name}.json").write_text(json.dumps(data))
    command = ["score", str(tmp_path/"p.json"), str(tmp_path/"r.json"), "--metrics", "CIDEr"]
    assert main(command) == 2 and "subset" in capsys.readouterr().err
    assert main([*command, "--subset"]) == 2 and "2" in capsys.readouterr().err
    assert main([*command, "--subset", "--drop-empty"]) == 0
    out = capsys.readouterr().out
    assert "empty caption" in out and "no caption" in out
    assert main([*command, "--split", "val"]) == 2 and "val" in capsys.readouterr().err


def agent(place, script, port, delay):
    "One node of two: torchrun's elastic agent with one process, all on the loopback address."
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "code"), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1", "FAKE_DELAY": str(delay), "GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "5", "--monitor-interval", "0.2",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "fuse", "--rdzv-conf", "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=2", "--local-addr", "127.0.0.1", str(script)]
    log = open(place / f"agent-{time.monotonic_ns()}.log", "wb")
    return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def kill_node(agent):
    "The agent and the process that it started, which has a session of its own."
    import psutil                                            # comes with accelerate
    for process in (psutil.Process(agent.pid), *psutil.Process(agent.pid).children(recursive=True)): process.kill()
    agent.wait()


def test_two_nodes_of_which_one_is_killed(place):
    "Two agents, one killed with its process in mid-run and started again: nothing is lost, and the captions are those of one process."
    script, out = place / "script.py", place / "out"
    script.write_text(f"from fuse_nb.runs import evaluate_folder\n"
                      f"evaluate_folder('fake_captioner:Maker', {str(place / 'photos')!r}, {str(out)!r}, {str(place / 'references.json')!r}, metrics=['Bleu_1'], tokenized=True, progress=False)")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    lines = lambda: {l for f in out.glob("captions*.jsonl") for l in f.read_text().splitlines() if l.endswith("}")}
    ids = lambda some: {json.loads(l)["id"] for l in some}
    first = agent(place, script, port, 1.0)
    time.sleep(1)                                            # the first agent is the one that the nodes meet at
    second = agent(place, script, port, 1.0)
    try:
        until = time.monotonic() + 90
        while len(lines()) < 4: assert time.monotonic() < until and first.poll() is None and second.poll() is None; time.sleep(0.05)
        kill_node(second)
        before = lines()
        assert 4 <= len(before) < 12
        second = agent(place, script, port, 0.1)
        assert first.wait(120) == 0 and second.wait(60) == 0
    finally:
        for process in (first, second):
            if process.poll() is None: kill_node(process)
    told_of = {r["id"]: r["caption"] for r in map(json.loads, (out / "captions.jsonl").read_text().splitlines())}
    assert told_of == {r["id"]: r["caption"] for r in run(place, "one").captions}
    assert ids(before) <= set(told_of) and before <= set((out / "captions.jsonl").read_text().splitlines())      # what was done is kept as it was
    assert json.loads((out / "run.json").read_text())["complete"] and not list(out.glob("captions.0*"))
