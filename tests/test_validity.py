"The validity protocol: known answers, controls, intervals that hold the truth, refusals, stopped runs; on tiny models of random weights."
import json

import numpy as np
import pytest
import torch

from fuse_nb import cli
import fuse_nb.validity as room
from fuse_nb.agreement import AMONG, FEWEST, Row, Validity, agreement, interval, places, rank_correlation, rows_from
from fuse_nb.encoders import TextEncoder
from fuse_nb.causal import CausalLM
from fuse_nb.objective import Term
from fuse_nb.probes import check_common_words, goal_losses, kinds_of, made_up, pairs_of, read_prompts, sample_of, slot_of
from fuse_nb.ranking import Fuse, Ranker
from fuse_nb.tokens import allowed_tokens, token_strings
from fuse_nb.validity import KINDS, Here, Likeliest, Shuffled, named_ranker, validate, validate_named
from test_models import SENTENCES, V, word_pieces
from test_search import adapter_of, bert, source_of

pytest.importorskip("transformers")
scipy_stats = pytest.importorskip("scipy.stats")
pytestmark = pytest.mark.usefixtures("own_cache")


TEXTS = ["a photo of a cat", "the dog ran after", "two people ride horses", "a cup of coffee on", "the ball in the park", "a mat on a beach", "people ran in", "horses in the park",
         "a dog on a mat", "the cat ran after a", "a photo of the beach", "coffee in a cup"]
GOALS = SENTENCES + ["the cat", "a park", "dogs ran", "people on the beach", "two cups", "a horse", "the mat"]
SMALL = dict(prompts=TEXTS, goals=GOALS, tokens=60, progress=False)


class Exact(Ranker):
    "The loss itself: what no ranker can beat."
    def predict(self, term, state): return Term(term.loss).exact(state.texts(range(V)))


class Order:
    "Not derived from Ranker: an order of the tokens."
    def rank(self, objective, state): return objective(state.rows(range(V)), state.start).total


# --- the measures --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(6))
def test_rank_correlation_is_scipys(seed):
    draw = np.random.default_rng(seed)
    a, b = draw.integers(0, 12, 80), draw.normal(size=80)
    b = b + 0.1*a
    assert rank_correlation(a, b) == pytest.approx(scipy_stats.spearmanr(a, b)[0], abs=1e-12)
    assert (places(a) == scipy_stats.rankdata(a) - 1).all()


def test_recall_and_regret_by_counting():
    exact = np.arange(100.0)
    predicted = exact.copy()
    predicted[:3] = 200  # of the five best, three come last
    s, recall, regret = agreement(predicted, exact)
    assert recall == 0.4 and regret == 3  # the two left are in front; the best of them is 3


def test_equal_predictions_are_ordered_by_lot():
    exact = np.arange(200.0)  # in the order of the tokens: a stable sort would call this perfect
    found = np.array([agreement(np.zeros(200), exact, k) for k in range(400)])
    assert (found[:, 0] == 0).all() and abs(found[:, 1].mean() - 0.1) < 0.015
    assert abs(found[:, 2].mean() - 200/11 + 1) < 2  # the smallest of 10 of 200: (200 + 1)/11 - 1


@pytest.mark.parametrize("bad", [np.zeros(19), np.full(40, np.nan)])
def test_agreement_refuses(bad):
    with pytest.raises(ValueError, match="20|NaN"): agreement(bad, np.arange(float(len(bad))))


def test_intervals_hold_the_truth_as_often_as_they_say():
    draw, inside, n = np.random.default_rng(0), 0, 600
    for k in range(n):
        _, low, high = interval(draw.beta(4, 2, size=64), k, 500)
        inside += low <= 4/6 <= high
    assert abs(inside/n - 0.95) < 0.03


def test_too_few_for_an_interval():
    with pytest.raises(ValueError, match="at least 8 prompts, got 7"): interval([0.5]*7)


# --- known answers -------------------------------------------------------------------------------------------------------------------

def test_known_answers(pair):
    lm, encoder, adapter = pair
    rankers = {"exact": Exact(), "order": Order(), "chance": "random", "zero": "zero"}
    found = validate(lm, encoder, adapter, rankers, **SMALL)
    for where in ("append", "swap"):
        for name in ("exact", "order"):
            row = found.row(name, where)
            assert row.spearman == (1, 1, 1) and row.recall == (1, 1, 1) and row.regret == (0, 0, 0) and row.n == len(TEXTS)
        mean, low, high = found.row("chance", where).spearman
        assert low < 0.05 and high > -0.05 and abs(mean) < 0.12
        assert found.row("zero", where).spearman == (0, 0, 0) and found.row("zero", where).regret[0] > 0


def test_the_exact_gradient_of_a_linear_loss_is_exact(pair):
    "Where the loss is linear in the embeddings and the adapter is exact, one tangent orders all tokens rightly."
    lm, _, _ = pair
    twin = bert("twin", lm.tokenizer, lm.embedding_table.detach())

    class Linear:
        label, model = "linear", twin
        def losses(self, embeds, mask=None): return (embeds.float()*(1 if mask is None else mask[..., None])).sum(1) @ torch.linspace(-1, 1, 32)
        def exact(self, texts):
            ids, mask = twin.pad(twin.tokenize(texts))
            return self.losses(twin.embed(ids), mask).detach()

    eye = lambda l: torch.cat([torch.eye(32)[..., None], torch.zeros(32, 32, l - 1)], 2)
    same = adapter_of(lm, twin, {l: eye(l) for l in (1, 2, 3)})
    found = validate(lm, twin, same, ["fuse 1", "vocabulary 1", "shuffled 1"], **SMALL | dict(goals=[Linear()]*len(TEXTS)), where=["append"])
    assert found.row("fuse 1").spearman[0] > 0.97  # all but the texts that the tokenizer spells anew with the token
    assert abs(found.row("shuffled 1").spearman[0]) < 0.5 < found.row("fuse 1").spearman[0]


def test_the_controls(pair):
    lm, encoder, adapter = pair
    slot = slot_of(lm, ("a photo", " of a cat"), "swap", allowed_tokens(lm), 1)
    term = Term(encoder.text("a dog"), 1.0, adapter)
    assert (Likeliest().predict(term, slot) == -slot.logprobs).all()
    mixed = Term(encoder.text("a dog"), 1.0, Shuffled(adapter, 3))
    plain, other = Fuse(2).predict(term, slot), Fuse(2).predict(mixed, slot)
    assert not torch.allclose(plain, other)
    g = torch.randn(5, 2, 32)
    order = Shuffled(adapter, 3).order
    assert torch.equal(Shuffled(adapter, 3).pullback(g), adapter.pullback(g)[..., order]) and sorted(order.tolist()) == list(range(32))
    # the target's own slope at the token that stands there, by hand
    text = slot.texts([slot.present])
    ids, mask = encoder.pad(encoder.tokenize(text))
    leaf = encoder.embed(ids).detach().requires_grad_()
    grad, = torch.autograd.grad(term.loss.losses(leaf, mask).sum(), leaf)
    word = text[0][len(lm.tokenizer.decode(slot.left[len(lm.bos_ids):])):].split()[0]
    spelled = encoder.tokenizer(word, add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(ids[0])) if ids[0, i:i + len(spelled)].tolist() == spelled)
    if text[0].split().count(word) == 1:
        from fuse_nb.tables import spelling_table
        wanted = spelling_table(lm, encoder) @ grad[0, at:at + len(spelled)].sum(0)
        torch.testing.assert_close(Here(1).predict(term, slot), wanted, atol=1e-4, rtol=1e-4)


# --- slots, samples, kinds -----------------------------------------------------------------------------------------------------------

def test_slots(pair):
    lm, _, _ = pair
    allowed, seen = allowed_tokens(lm), set()
    for seed in range(12):
        s = slot_of(lm, ("a photo", " of a cat on a mat"), "swap", allowed, seed)
        assert s.texts([s.present]) == ["a photo of a cat on a mat"] and len(s.left) >= s.start >= 1
        assert token_strings(lm)[s.present][:1] == " "
        logits = lm.model(input_ids=torch.tensor([s.left])).logits[0, -1].float()
        torch.testing.assert_close(s.logprobs, logits.log_softmax(-1), atol=1e-4, rtol=1e-4)
        seen.add(len(s.left))
    assert len(seen) > 1
    s = slot_of(lm, ("a photo", " of a cat"), "append", allowed, 0)
    assert s.right == [] and s.present is None and s.start == len(lm.tokenize(["a photo"])[0])


def test_a_sample_leaves_out_what_is_tried(pair):
    lm, _, _ = pair
    s = slot_of(lm, ("", "a photo of a"), "append", allowed_tokens(lm), 4)
    sample = sample_of(s, 80, 16).tolist()
    tried = set(s.expansions(16).tolist())
    assert len(set(sample)) == 80 and not tried & set(sample) and all(s.allowed[sample])
    rest = [i for i in s.logprobs.argsort(descending=True).tolist() if s.allowed[i] and i not in tried]
    assert set(rest[:32]) <= set(sample)
    assert sample_of(s, 80, 16).tolist() == sample
    with pytest.raises(ValueError, match="tokens must be at most"): sample_of(s, 400, 16)


def test_kinds_by_spelling_whole_texts(pair):
    lm, encoder, _ = pair
    strings = token_strings(lm)
    for where, seed in (("append", 0), ("swap", 1), ("swap", 5)):
        s = slot_of(lm, ("", "a photo of a cat on the mat"), where, allowed_tokens(lm), seed)
        sample = sample_of(s, 120, 8)
        kinds = kinds_of(s, sample, encoder)
        assert list(kinds) == list(AMONG) and (kinds["begin"] == ~kinds["continue"]).all() and kinds["all"].all()
        left, right = lm.tokenizer.decode(s.left), lm.tokenizer.decode(s.right)
        for j, v in enumerate(sample.tolist()):
            upto, whole = len((left + strings[v]).rstrip()), left + strings[v] + right
            begin = max(whole.rfind(" ", 0, upto) + 1, 0)
            end = whole.find(" ", upto)
            word = whole[begin:end if end >= 0 else None]
            row, owned, at = s.left + [v] + s.right, [], 0
            for i in row:  # the source tokens that lie inside the word
                piece = lm.tokenizer.decode([i])
                owned.append(at + len(piece.lstrip() or piece) > 0 and at + len(piece) > begin and at + len(piece) - len(piece.lstrip()) < begin + len(word)); at += len(piece)
            l = max(sum(owned), len(encoder.tokenizer(word, add_special_tokens=False)["input_ids"]))
            name = f"l = {l}" if l <= 3 else "l > 3"
            assert kinds[name][j], (word, l, {k: x[j] for k, x in kinds.items()})


def test_the_prompts_that_come_with_it():
    prompts, goals = made_up()
    assert len(prompts) == len(goals) == len(set(goals)) == len(set(prompts)) >= 64
    assert made_up(8)[0][0] == prompts[0] and len(made_up(64)[0]) == 64
    with pytest.raises(ValueError, match="from 8 to 96, got 7"): made_up(7)


def test_prompts_from_a_file(tmp_path):
    file = tmp_path/"mine.tsv"
    file.write_text("a photo of\ta cat\n\nAn image of\t a dog on\ta mat\n")
    assert read_prompts(file) == ([("", "a photo of"), ("An image of", " a dog on")], ["a cat", "a mat"])
    file.write_text("a photo of\ta cat\nno tab here\n")
    with pytest.raises(ValueError, match="line 2 .*'no tab here'"): read_prompts(file)


# --- refusals ------------------------------------------------------------------------------------------------------------------------

def test_a_pair_without_common_words(pair):
    lm, encoder, adapter = pair
    far = bert("runes", word_pieces())
    with pytest.raises(ValueError, match="hardly any common words: of 3 words .*gpt2 3.*runes 0"):
        check_common_words(lm, far, ["\u16a0\u16a2\u16a6", "\u16b1\u16a8", "\u16c1"])
    assert check_common_words(lm, encoder, ["a", "cat", "dog", "\u16a0"]) == 0.75


def test_it_is_refused_before_anything_is_fitted(pair, monkeypatch):
    lm, encoder, _ = pair
    monkeypatch.setattr("fuse_nb.words.word_list", lambda n: (["\u16a0\u16a2"]*n, np.ones(n)))
    with pytest.raises(ValueError, match="hardly any common words"): validate(lm, encoder, None, ["fuse 1"], **SMALL)


@pytest.mark.parametrize("change, told", [
    (dict(prompts=TEXTS[:7], goals=GOALS[:7]), "at least 8 for an interval, got 7"),
    (dict(goals=GOALS[:-1]), "same length; prompts has 12, goals has 11"),
    (dict(goals=None), "same length; prompts has 12, goals has 0"),
    (dict(goals=["a "*500] + GOALS[1:]), r"goals\[0\] has \d+ tokens, the model reads"),
    (dict(goals=["  "] + GOALS[1:]), r"goals\[0\] is empty"),
    (dict(prompts=["  "] + TEXTS[1:]), r"prompts\[0\] has nothing found"),
    (dict(prompts=[("a", "b", "c")] + TEXTS[1:]), r"prompts\[0\] must be a text, or"),
    (dict(rankers=["gradient"]), "there is no ranker 'gradient'; there are zero, random"),
    (dict(rankers=["words 3"]), "there is no ranker 'words 3'"),
    (dict(rankers=[]), "rankers is empty"),
    (dict(where=["prepend"]), "where"),
    (dict(tokens=10), "tokens must be .*20"),
    (dict(tokens=4000), "tokens must be at most"),
    (dict(prompts=9), "goals belong to prompts"),
])
def test_refusals(pair, change, told):
    lm, encoder, adapter = pair
    with pytest.raises(ValueError, match=told): validate(lm, encoder, adapter, **dict(rankers=["lm"]) | SMALL | change)


def test_goals_that_the_model_cannot_take(pair):
    lm, encoder, _ = pair

    class Judge:
        name, max_length, tokenizer = "judge", 64, encoder.tokenizer
        def tokenize(self, texts): return encoder.tokenize(texts)

    with pytest.raises(ValueError, match="judge cannot take a sentence as its goal: give losses"): goal_losses(Judge(), ["a cat"])
    with pytest.raises(ValueError, match=r"goals\[1\] is a loss of another model"): goal_losses(lm, ["a cat", encoder.text("a dog")])
    with pytest.raises(TypeError, match=r"goals\[0\] must be a text"): goal_losses(encoder, [7])
    with pytest.raises(TypeError, match="prompts must be a list of texts"): pairs_of("a photo of a cat")
    assert [type(x).__name__ for x in goal_losses(lm, ["a cat"])] == ["NextTokens"]


def test_a_ranker_that_cannot_predict_is_left_out_or_refused(pair):
    lm, _, _ = pair
    judge = source_of("llama")
    through = adapter_of(lm, judge, {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
    few = SMALL | dict(prompts=TEXTS[:8], goals=GOALS[:8], where=["append"])
    found = validate(lm, judge, through, **few)
    assert "words" in found.missing and "needs a loss" in found.missing["words"] and "left out: words" in str(found)
    assert {r.ranker for r in found.rows} == set(room.RANKED) - {"words"}
    with pytest.raises(ValueError, match="'words' needs a loss"): validate(lm, judge, through, ["lm", "words"], **few)


# --- files -----------------------------------------------------------------------------------------------------------------------------

def test_a_stopped_run_goes_on(pair, tmp_path, monkeypatch):
    lm, encoder, adapter = pair
    out, names = tmp_path/"v.json", ["lm", "fuse 1", "combined"]
    whole = validate(lm, encoder, adapter, names, **SMALL)
    judged, left = [], [5]

    def judge(slot, *rest):
        if not left[0]: raise KeyboardInterrupt
        left[0] -= 1
        judged.append(len(slot.left))
        return judge_slot(slot, *rest)

    judge_slot = room.judge_slot
    monkeypatch.setattr(room, "judge_slot", judge)
    with pytest.raises(KeyboardInterrupt): validate(lm, encoder, adapter, names, out=out, **SMALL)
    assert len(json.loads(out.read_text())["slots"]) == 5
    left[0] = 1000
    assert validate(lm, encoder, adapter, names, out=out, **SMALL) == whole
    assert len(judged) == 2*len(TEXTS)  # nothing twice
    assert validate(lm, encoder, adapter, names, out=out, **SMALL) == whole and len(judged) == 2*len(TEXTS)
    more = validate(lm, encoder, adapter, [*names, "zero"], out=out, **SMALL)  # and more rankers later
    assert more.row("lm") == whole.row("lm") and more.row("zero").spearman == (0, 0, 0)


@pytest.mark.parametrize("change, told", [(dict(tokens=61), "another tokens"), (dict(seed=1), "another seed"), (dict(goals=GOALS[::-1]), "another goals"), (dict(rankers=["fuse 2"]), "another adapter, tried|another tried")])
def test_a_file_of_another_run_is_refused(pair, tmp_path, change, told):
    lm, encoder, adapter = pair
    few = SMALL | dict(where=["append"], rankers=["lm", "fuse 1"], out=tmp_path/"v.json")
    validate(lm, encoder, adapter, **few)
    with pytest.raises(ValueError, match=told): validate(lm, encoder, adapter, **few | change)
    with pytest.raises(FileNotFoundError, match="does not exist"): validate(lm, encoder, adapter, **few | dict(out=tmp_path/"no"/"v.json"))


def test_the_report(pair):
    lm, encoder, adapter = pair
    found = validate(lm, encoder, adapter, ["lm", "fuse 4"], **SMALL)
    assert Validity.from_json(json.loads(json.dumps(found.to_json()))) == found or str(Validity.from_json(json.loads(json.dumps(found.to_json())))) == str(found)
    lines = found.table("swap").splitlines()
    assert len(lines) == 3 and lines[1].startswith("lm") and f"{found.row('lm', 'swap').spearman[0]:.3f}" in lines[1]
    with pytest.raises(KeyError, match="no row 'words'"): found.row("words")
    ax = found.plot("append")
    with pytest.raises(ValueError, match="no rows for where = 'append', among = 'none'"): found.plot("append", "none")
    assert "orders best" in ax.get_title(loc="left") and len(ax.patches) == 2


def test_rows_need_prompts_enough():
    slots = {f"{k} append": {"x": {"all": [0.1, 0.2, 0.3]} | ({"begin": [1, 1, 1]} if k < FEWEST - 1 else {})} for k in range(FEWEST)}
    (row,) = rows_from(slots, ["x", "y"])
    assert isinstance(row, Row) and row.among == "all" and row.spearman == pytest.approx((0.1, 0.1, 0.1))


def test_every_kind_can_be_named():
    for kind in KINDS: assert isinstance(named_ranker(kind), Ranker)
    assert named_ranker("fuse 4").n == 4 and named_ranker("vocabulary 1").n == 1


# --- the command -----------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def by_name(pair, monkeypatch):
    lm, encoder, _ = pair
    monkeypatch.setattr(CausalLM, "from_pretrained", classmethod(lambda cls, name, device=None: lm))
    monkeypatch.setattr(TextEncoder, "from_pretrained", classmethod(lambda cls, name, device=None: encoder))


def test_the_command(by_name, tmp_path, capsys):
    file, out = tmp_path/"p.tsv", tmp_path/"v.json"
    file.write_text("".join(f"{t}\t{g}\n" for t, g in zip(TEXTS, GOALS)))
    argv = ["validate", "--lm", "x", "--target", "y", "--prompts", str(file), "--rankers", "lm, vocabulary 4", "--tokens", "60", "--limit", "9"]
    assert cli.main([*argv, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "gpt2 -> pieces, 9 prompts" in text and "vocabulary 4" in text and out.exists()
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["prompts"] == 9


@pytest.mark.parametrize("argv, told", [
    (["--rankers", "none"], "there is no ranker 'none'"), (["--limit", "3"], "--limit: must be"), (["--prompts", "nowhere.tsv"], "nowhere.tsv"),
    (["--out", "nowhere/v.json"], "does not exist"), (["--tokens", "few"], "--tokens")])
def test_the_command_refuses(argv, told, capsys, monkeypatch):
    def never(cls, *_, **__): raise AssertionError("a model is loaded")
    monkeypatch.setattr(CausalLM, "from_pretrained", classmethod(never))
    assert cli.main(["validate", *argv]) == 2
    err = capsys.readouterr().err
    assert told in err and len(err.splitlines()) == 1


def test_a_packaged_language_model_is_known_as_a_target(by_name, monkeypatch, pair):
    seen = {}
    monkeypatch.setattr(room, "validate", lambda source, target, *_, **__: seen.update(target=target))
    validate_named("smollm2-135m", "gemma3-270m")
    assert isinstance(seen["target"], CausalLM)
    validate_named("smollm2-135m", "minilm")
    assert isinstance(seen["target"], TextEncoder)
