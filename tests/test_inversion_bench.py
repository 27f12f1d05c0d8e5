"The program behind data/inversion.json: its measures against counts made by hand, its order, its texts."
import json
from collections import Counter
from pathlib import Path

import pytest

import bench_inversion as bench

TEXTS = json.loads((Path(__file__).parent.parent/"data"/"inversion_texts.json").read_text(encoding="utf-8"))["texts"]


def test_measures_by_hand():
    t = dict(text="Lena Korvat won 4 races.", names=["Lena", "Korvat", "4"])
    m = bench.judged("lena won the races, races", t)
    assert m["f1"] == pytest.approx(100*2*3/(5 + 5), abs=0.01)           # lena, won, races; 5 words on both sides
    assert m["rouge_l"] == pytest.approx(100*2*3/(5 + 5), abs=0.01)      # they stand in this order
    assert m["names"] == pytest.approx(100/3, abs=0.01) and m["exact"] == 0
    assert m["content"] == pytest.approx(100*3/5, abs=0.01)
    assert bench.judged("races won Lena", t)["rouge_l"] == pytest.approx(100*2*1/(3 + 5), abs=0.01)
    assert bench.judged("lena korvat won 4 races", t)["exact"] == 100


def test_a_text_without_names_has_no_share_of_them():
    assert bench.judged("a cat", dict(text="A cat asleep"))["names"] is None


def test_the_first_texts_of_a_run_are_balanced():
    for n in (9, 18, 45):
        cells = Counter((t["kind"], t["size"]) for t in bench.in_turns("held-out")[:n])
        assert len(cells) == 9 and set(cells.values()) == {n//9}


def test_the_texts_are_as_many_and_as_long_as_they_say():
    held = [t for t in TEXTS if t["split"] == "held-out"]
    assert Counter(t["kind"] for t in held) == dict(caption=32, question=32, named=32) and len(TEXTS) - len(held) == 12
    assert all(abs(t["tokens"] - t["size"]) <= 1 and t["size"] in (8, 16, 32) for t in TEXTS)
    assert len({t["text"] for t in TEXTS}) == 108
    for t in TEXTS:
        assert ("names" in t) == (t["kind"] == "named") and all(n in t["text"] for n in t.get("names", ["a"]) if t["kind"] == "named")


def test_the_token_counts_are_the_language_models():
    from fuse_nb.causal import CausalLM
    try: lm = CausalLM.from_pretrained("smollm2-135m", device="cpu")
    except (ValueError, OSError) as e: pytest.skip(f"the packaged model is not there: {e}")
    assert [len(ids) for ids in lm.tokenize([t["text"] for t in TEXTS])] == [t["tokens"] for t in TEXTS]


def test_a_change_by_lot_is_one_change():
    import random
    draw = random.Random(0)
    for _ in range(200):
        new = bench.changed(["a", "b", "c"], ["x"], draw)
        assert 2 <= len(new) <= 4 and len(set("abc") - set(new)) <= 1


def test_defences_keep_the_length_and_what_they_say():
    import torch
    e = torch.nn.functional.normalize(torch.randn(384, generator=torch.Generator().manual_seed(0)), dim=0)
    for name, (change, level) in bench.DEFENCES.items():
        assert change(e, level, 3).norm().item() == pytest.approx(1, abs=1e-5), name
    assert torch.allclose(bench.noisy(e, 0.0, 0), e, atol=1e-6)
    near = [(bench.noisy(e, 1.0, i) @ e).item() for i in range(50)]
    assert sum(near)/50 == pytest.approx(0.5**0.5, abs=0.02)             # a right angle, nearly, in 384 dimensions
    assert bench.int8(e, 0, 0) @ e > 0.999 and not bench.fewer(e, 32, 0)[32:].any()
