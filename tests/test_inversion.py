"Inversion on tiny models of random weights, where the exhaustive search is possible; files of vectors; runs of many; the command."
import itertools
import json
import warnings

import numpy as np
import pytest
import torch

from fuse_nb import cli
from fuse_nb.embeddings import embedding_of, invert_all, read_embeddings
from fuse_nb.inversion import Attempt, Inversion, Inverter, Watched, check_embedding, invert, moved
from fuse_nb.residual import Directions, after_words, directions, gains, own_table
from fuse_nb.tables import Tables
from fuse_nb.tokens import allowed_tokens, token_strings
from test_search import adapter_of, source_of

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def by(pair):
    lm, encoder, adapter = pair
    return Inverter(encoder, lm, adapter, steps=5, beam=2, candidates=6, swaps=4, openings=("", "a"))


def definition(by, text, e):
    "The objective of one text, from the models' logits and features alone."
    lm = by.lm
    given = lm.bos_ids + lm.tokenizer(by.before, add_special_tokens=False)["input_ids"]
    ids = lm.bos_ids + lm.tokenizer(by.before + text, add_special_tokens=False)["input_ids"]
    logp = lm.logits(lm.embed([ids]))[0].float().log_softmax(-1)
    nll = [-logp[i - 1, ids[i]].item() for i in range(len(given), len(ids))]
    return by.similarity*(1 - (by.encoder.encode([text])[0] @ e).item()) + by.fluency*sum(nll)/len(nll) + by.price*len(nll)


# --- the search --------------------------------------------------------------------------------------------------------------------------

def test_the_loss_is_the_definitions(by):
    e = by.encoder.encode(["the dog ran after the ball"])[0]
    found = by(e, queries=1500)
    assert found.loss == pytest.approx(definition(by, found.text, e), abs=2e-3)
    assert found.cosine == pytest.approx((by.encoder.encode([found.text])[0] @ e).item(), abs=1e-5)
    assert found.text == found.text.strip() and str(found) == found.text


def test_judge_finds_what_trying_all_finds(by):
    e = by.encoder.encode(["a dog ran"])[0]
    texts = [" ".join(t) for n in (1, 2, 3) for t in itertools.product(["a", "dog", "ran", "cat"], repeat=n)]
    attempt = Attempt(by, e, 1000, 100.0, 0)
    judged = attempt.judge(texts, most=len(texts))
    want = sorted((definition(by, t, e), t) for t in texts)
    assert [t for _, t in judged][:5] == [t for _, t in want][:5]
    assert [J for J, _ in judged] == pytest.approx([J for J, _ in want], abs=2e-3)
    assert attempt.goal.queries == len(texts)


def test_it_beats_as_many_random_texts(by):
    e = by.encoder.encode(["two people ride horses"])[0]
    found, g = by(e, queries=1500), np.random.default_rng(0)
    words = "a photo of cat on mat the dog ran after ball in park two people ride horses beach cup coffee".split()
    tried = [" ".join(g.choice(words, g.integers(1, 5))) for _ in range(300)]
    assert found.loss <= min(definition(by, t, e) for t in tried)


@pytest.mark.parametrize("queries", [256, 400, 1000])
def test_the_queries_are_never_passed_and_counted_right(by, queries, monkeypatch):
    read = []
    features = type(by.encoder).features
    monkeypatch.setattr(type(by.encoder), "features", lambda self, x, mask=None: (read.append(len(x)), features(self, x, mask))[1])
    e = by.encoder.encode(["a cup of coffee"])[0]
    check = sum(read)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = by(e, queries=queries)
    tables = len(by.allowed)                      # the word table reads each of the vocabulary once, for all vectors
    assert found.queries <= queries
    assert found.queries <= sum(read) - check <= found.queries + 2*tables + 1
    again, before = by(e, queries=queries), sum(read)
    by(e, queries=queries)
    assert sum(read) - before in (again.queries, again.queries + 1)  # and the one that asks for the width


def test_the_seconds_are_kept(by):
    by(by.encoder.encode(["the park"])[0], queries=300)
    found = by(by.encoder.encode(["a cat"])[0], queries=10**6, seconds=1.5)
    assert found.seconds < 1.5 + 0.5 and found.stopped in ("seconds", "nothing helps any more")


def test_a_seed_decides(by):
    e = by.encoder.encode(["a cup of coffee"])[0]
    one, two = by(e, queries=700, seed=3), by(e, queries=700, seed=3)
    assert (one.text, one.loss, one.queries) == (two.text, two.loss, two.queries)
    assert [r["text"] for r in one.trace] == [r["text"] for r in two.trace]


def test_length_and_scale_of_the_vector_do_not_matter(by):
    e = by.encoder.encode(["the cat"])[0]
    assert by(e, queries=400).text == by((17*e).tolist(), queries=400).text == by((0.01*e).double().numpy(), queries=400).text


def test_a_price_makes_texts_shorter(pair):
    lm, encoder, adapter = pair
    e = encoder.encode(["two people ride horses on a beach"])[0]
    found = [Inverter(encoder, lm, adapter, price=p, steps=8, beam=2, candidates=6, openings=("",))(e, 1500) for p in (0.0, 30.0)]
    assert len(lm.tokenize([found[1].text])[0]) < len(lm.tokenize([found[0].text])[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_and_without_a_begin_of_text_token(family, pair):
    torch.manual_seed(0)
    lm, encoder = source_of(family), pair[1]
    by = Inverter(encoder, lm, adapter_of(lm, encoder, {l: torch.randn(32, 32, l) for l in (1, 2, 3)}), steps=3, beam=2, candidates=6, openings=("",))
    e = encoder.encode(["a cat"])[0]
    found = by(e, queries=500)
    assert found.loss == pytest.approx(definition(by, found.text, e), abs=2e-3)


def test_watched_reads_no_text_twice(pair):
    encoder = pair[1]
    goal = Watched(encoder, encoder.encode(["a cat"])[0])
    first = goal.exact([" a dog", "a dog\n", "a cat"])
    assert goal.queries == 2 and first[0] == first[1] and abs(first[2]) < 1e-5
    goal.exact(["a dog", "the park"])
    assert goal.queries == 3


def test_gains_are_the_cosines_of_sums():
    g = torch.Generator().manual_seed(0)
    goal, now, rows = (torch.nn.functional.normalize(torch.randn(*n, generator=g), dim=-1) for n in ((8,), (3, 8), (20, 8)))
    now[1] = 0                                             # no text yet
    want = torch.stack([torch.nn.functional.cosine_similarity(now[:, None] + a*rows, goal, dim=-1) for a in (0.1, 0.4)]).amax(0)
    torch.testing.assert_close(gains(goal, now, rows, (0.1, 0.4)), want, atol=1e-5, rtol=0)


def test_where_embeddings_are_sums_the_first_word_proposed_is_the_missing_one(by):
    "The missing word's direction is what the text lacks, so no other token can gain more."
    rows = torch.eye(by.encoder.encode(["a"]).shape[1])[:30]
    e = torch.nn.functional.normalize(rows[3] + rows[7] + rows[11], dim=0)
    attempt = Attempt(by, e, 500, 60.0, 0)
    attempt.goal.vectors["two words"] = torch.nn.functional.normalize(rows[3] + rows[11], dim=0)
    fits = torch.zeros(len(by.allowed))
    assert attempt.likely(["two words"], fits, 3, Directions(list(map(str, range(30))), torch.arange(100, 130), rows))[0][0] == 7


def test_words_and_pieces_are_the_encoders_own_and_read_alike_once(by):
    whole, pieces = directions(by.lm, by.encoder, Tables(), by.allowed)
    strings, own = token_strings(by.lm), token_strings(by.encoder)
    for kind, space in ((whole, " "), (pieces, "")):
        assert all(not s[:1].isspace() and s.strip() == s for s in kind.strings) and len(set(kind.strings)) == len(kind.strings)
        mine = {s.strip() for s, ok in zip(own, allowed_tokens(by.encoder)) if ok and s == space + s.strip()}
        others = {s.strip() for s, ok in zip(strings, by.allowed) if ok and s == space + s.strip()}
        assert mine <= set(kind.strings) <= mine | others
        spelled = by.lm.tokenizer([space + s for s in kind.strings], add_special_tokens=False)["input_ids"]
        assert kind.ids.tolist() == [ids[0] for ids in spelled]
        alike = (kind.rows @ kind.rows.T).fill_diagonal_(0)
        assert len(kind.ids) < 2 or alike.max() < 1 - 1e-6
        torch.testing.assert_close(kind.rows.norm(dim=1), torch.ones(len(kind.ids)))


def test_the_encoders_own_tokens_are_read_as_tokens_in_the_frame(by):
    "A piece stays a piece: the row is that of the ids, as the encoder's own model reads them."
    table, encoder = own_table(by.encoder, "a photo of"), by.encoder
    ids, special = encoder.tokenize(["a photo of"])[0], encoder.tokenizer.all_special_ids
    assert ids[-1] in special and ids[-2] not in special and len(table) == len(encoder.embedding_table)
    for v in (7, 30, len(table) - 1):
        row = torch.tensor([ids[:-1] + [v] + ids[-1:]])
        hidden = encoder.model(input_ids=row).last_hidden_state[0].mean(0)
        torch.testing.assert_close(table[v], torch.nn.functional.normalize(hidden, dim=0), atol=2e-3, rtol=0)


def test_after_words_are_the_models_own_log_probabilities(by):
    lm, words = by.lm, "a dog ran".split()
    found = after_words(lm, by.before, "a dog ran")
    for i in range(4):
        ids = lm.tokenize([by.before + " ".join(words[:i])])[0]
        torch.testing.assert_close(found[i], lm.logits(lm.embed([ids]))[0, -1].float().log_softmax(-1), atol=1e-4, rtol=1e-4)


def test_a_word_put_in_or_exchanged_is_one_word(by):
    attempt = Attempt(by, by.encoder.encode(["a dog ran after the ball"])[0], 500, 60.0, 0)
    by.prepare()
    text = "a dog ran"
    attempt.goal.exact([text])
    for t in attempt.inserted(text, 4):
        assert len(t.split()) in (3, 4) and len(set(text.split()) - set(t.split())) <= 1
    for t in attempt.exchanged(text, 2):
        assert len(t.split()) in (2, 3) and len(set(text.split()) - set(t.split())) <= 1


@pytest.mark.parametrize("proposer", ["residual", "ranker"])
def test_both_proposers_keep_to_the_definition_and_the_budget(pair, proposer):
    lm, encoder, adapter = pair
    by = Inverter(encoder, lm, adapter, proposer=proposer, steps=4, beam=2, candidates=6, openings=("", "a"))
    e = encoder.encode(["a dog ran after"])[0]
    found = by(e, queries=700)
    assert found.queries <= 700 and found.loss == pytest.approx(definition(by, found.text, e), abs=2e-3)


def test_what_is_made_once_is_not_on_the_clock(pair, monkeypatch):
    "The table of words is slow here; no vector's seconds hold it."
    import time
    lm, encoder, adapter = pair
    by, words = Inverter(encoder, lm, adapter, steps=2, openings=("",)), Tables.words

    def slow(self, *models):
        if not self._kept: time.sleep(5)
        return words(self, *models)

    monkeypatch.setattr(Tables, "words", slow)
    began = time.perf_counter()
    found = by(encoder.encode(["a cat"])[0], queries=256, seconds=3.0)
    assert time.perf_counter() - began > 5 and found.seconds < 4 and found.trace[0]["seconds"] < 4


def test_restarts_keep_most_words(by):
    attempt = Attempt(by, by.encoder.encode(["two people ride horses on a beach"])[0], 2000, 60.0, 0)
    by.prepare()
    attempt.best = min(attempt.judge(["two people horses beach dog cat"]))
    kept, best, gather = [], attempt.best, attempt.gather
    attempt.gather = lambda text: (kept.append((attempt.best[1], text)), gather(text))[1]
    attempt.again()
    assert len(kept) >= 1 and attempt.best <= best
    for whole, text in kept:
        words = whole.split()
        assert len(text.split()) == len(words) - len(words)//3 and set(text.split()) <= set(words)


def test_moved_is_every_order_one_step_away():
    words = "a b c d e".split()
    step = {p for p in itertools.permutations(words)
            if sum(x != y for x, y in zip(p, words)) == 2 or any([w for w in p if w != x] == [w for w in words if w != x] for x in words)}
    assert set(moved("a b c d e")) == {" ".join(p) for p in step - {tuple(words)}}
    assert moved("one") == [] and moved("a a") == []


# --- bad input ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("x, told", [(torch.ones(31), "dimension of 32"), (torch.ones(2, 32), "1 dimensions"), (torch.full((32,), float("nan")), "NaN"),
                                     (torch.zeros(32), "all zeros"), ([float("inf")]*32, "infinite")])
def test_what_is_no_embedding_is_refused(by, x, told):
    with pytest.raises(ValueError, match=told): by(x)


@pytest.mark.parametrize("x", ["text", None, [["a"]], object()])
def test_what_is_no_numbers_is_refused(by, x):
    with pytest.raises(TypeError, match="embedding must be a row of numbers"): by(x)


@pytest.mark.parametrize("options, told", [(dict(queries=10), "queries"), (dict(seconds=0), "seconds"), (dict(seed=-1), "seed")])
def test_budgets_are_checked(by, options, told):
    with pytest.raises(ValueError, match=told): by(torch.ones(32), **options)


@pytest.mark.parametrize("options, told", [(dict(beam=0), "beam"), (dict(fluency=-1.0), "fluency"), (dict(similarity=0.0), "similarity"), (dict(openings=()), "openings"), (dict(proposer="best"), "proposer"), (dict(restarts=-1), "restarts"), (dict(ranker="best"), "ranker"), (dict(proposer="best"), "proposer")])
def test_settings_are_checked(pair, options, told):
    lm, encoder, adapter = pair
    with pytest.raises(ValueError, match=told): Inverter(encoder, lm, adapter, **options)


def test_models_are_checked(pair):
    with pytest.raises(TypeError, match="encoder must be a TextEncoder"): invert([1.0], encoder=3, lm=pair[0])


def test_a_vector_of_another_encoder_is_told(by):
    "A layer norm ends this encoder, so every text's vector has the mean 0 and stands square to this one."
    with pytest.warns(UserWarning, match="probably did not make this embedding"): found = by(torch.ones(32), queries=300)
    assert abs(found.cosine) < 0.05


def test_a_text_that_is_read_in_part_is_refused(pair):
    encoder = pair[1]
    with pytest.raises(ValueError, match="reads 32 at most"): embedding_of("cat "*60, encoder)
    with pytest.raises(ValueError, match="text must not be empty"): embedding_of("  ", encoder)
    torch.testing.assert_close(embedding_of("a cat", encoder), encoder.encode(["a cat"])[0])


# --- files -------------------------------------------------------------------------------------------------------------------------------

X = np.arange(12.0).reshape(3, 4)


def test_three_kinds_of_file_give_the_same(tmp_path):
    np.save(tmp_path/"a.npy", X)
    np.savez(tmp_path/"a.npz", ids=np.array([7, 8, 9]), vectors=X.astype(np.float64))
    (tmp_path/"a.jsonl").write_text("".join(json.dumps(dict(id=i, embedding=list(x))) + "\n\n" for i, x in zip("uvw", X)))
    for name, ids in (("a.npy", ["0", "1", "2"]), ("a.npz", ["7", "8", "9"]), ("a.jsonl", ["u", "v", "w"])):
        got, x = read_embeddings(tmp_path/name)
        assert got == ids and x.dtype == np.float32 and (x == X).all()
    np.save(tmp_path/"one.npy", X[0])
    assert read_embeddings(tmp_path/"one.npy")[1].shape == (1, 4)


@pytest.mark.parametrize("name, content, told", [
    ("a.npy", b"", "empty file"), ("a.npy", b"no numpy", "cannot be read"), ("a.npz", b"PK", "cannot be read"), ("a.csv", b"1,2", "must end in"), ("a.jsonl", b"", "empty file"),
    ("a.jsonl", b"\n\n", "shape"), ("a.jsonl", b'{"id": 1}\n', "line 1"), ("a.jsonl", b'{"embedding": [1, "x"]}\n', "line 1"), ("a.jsonl", b"[1, 2]\n", "line 1"),
    ("a.jsonl", b'{"embedding": [1, 2]}\n{"embedding": [1]}\n', "several dimensions"), ("a.jsonl", b'{"id": "a", "embedding": [1]}\n{"id": "a", "embedding": [2]}\n', "twice")])
def test_bad_files_are_refused_by_name(tmp_path, name, content, told):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError, match=told) as e: read_embeddings(tmp_path/name)
    assert name in str(e.value)


@pytest.mark.parametrize("array", [np.array(["a"]), np.zeros((0, 4)), np.zeros((2, 2, 2)), np.array([1j])])
def test_arrays_of_another_kind_are_refused(tmp_path, array):
    np.save(tmp_path/"a.npy", array)
    with pytest.raises(ValueError, match="a.npy"): read_embeddings(tmp_path/"a.npy")


def test_files_that_are_not_there_or_ambiguous(tmp_path):
    with pytest.raises(FileNotFoundError, match="b.npy"): read_embeddings(tmp_path/"b.npy")
    np.savez(tmp_path/"a.npz", x=X, y=X)
    with pytest.raises(ValueError, match="x, y"): read_embeddings(tmp_path/"a.npz")
    np.savez(tmp_path/"a.npz", embeddings=X, ids=np.arange(2))
    with pytest.raises(ValueError, match="2 ids for 3"): read_embeddings(tmp_path/"a.npz")


# --- many --------------------------------------------------------------------------------------------------------------------------------

def test_many_go_on_where_they_stopped(by, tmp_path, monkeypatch):
    x, out = by.encoder.encode(["a cat", "the park", "two horses"]), tmp_path/"out.jsonl"
    budget = dict(queries=300, progress=False)
    whole = invert_all(x, by, queries=300, progress=False)
    call, done = Inverter.__call__, []

    def stops(self, *given):
        if len(done) == 1: raise KeyboardInterrupt
        done.append(call(self, *given))
        return done[-1]

    with monkeypatch.context() as m:
        m.setattr(Inverter, "__call__", stops)
        with pytest.raises(KeyboardInterrupt): invert_all(x, by, out=out, **budget)
    assert len(out.read_text().splitlines()) == 1
    with open(out, "a") as f: f.write('{"id": "1", "te')  # a crash while writing
    found = invert_all(x, by, out=out, **budget)
    assert found[0] == done[0] and [r.text for r in found] == [r.text for r in whole]
    lines = [json.loads(l) for l in out.read_text().splitlines()]
    assert [l["id"] for l in lines] == ["0", "1", "2"] and [l["text"] for l in lines] == [r.text for r in whole]
    with monkeypatch.context() as m:
        m.setattr(Inverter, "__call__", lambda *a: pytest.fail("found already"))
        assert invert_all(x, by, out=out, **budget) == found
    with pytest.raises(ValueError, match="other vectors or settings"): invert_all(x, by, out=out, queries=301, progress=False)


def test_all_vectors_are_checked_before_the_first(by, monkeypatch):
    monkeypatch.setattr(Inverter, "__call__", lambda *a: pytest.fail("begun"))
    with pytest.raises(ValueError, match="embedding b is all zeros"): invert_all([torch.ones(32), torch.zeros(32)], by, ids=["a", "b"])
    with pytest.raises(ValueError, match="one or more"): invert_all([], by)
    with pytest.raises(FileNotFoundError, match="folder of out"): invert_all([torch.ones(32)], by, out="/nowhere/at/all.jsonl")


# --- the command -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def loaded(pair, monkeypatch):
    from fuse_nb.causal import CausalLM
    from fuse_nb.encoders import TextEncoder
    from fuse_nb.fitting import FuseAdapter
    lm, encoder, adapter = pair
    monkeypatch.setattr(CausalLM, "from_pretrained", classmethod(lambda cls, *a, **k: lm))
    monkeypatch.setattr(TextEncoder, "from_pretrained", classmethod(lambda cls, *a, **k: encoder))
    monkeypatch.setattr(FuseAdapter, "cached", classmethod(lambda cls, *a, **k: adapter))
    return encoder


def test_the_texts_alone_are_on_the_output(loaded, tmp_path, capsys):
    np.save(tmp_path/"v.npy", loaded.encode(["a cat", "the park"]).numpy())
    out = tmp_path/"o.jsonl"
    assert cli.main(["invert", str(tmp_path/"v.npy"), "--queries", "256", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [json.loads(l)["text"] for l in out.read_text().splitlines()] and len(said.out.splitlines()) == 2
    assert "cosine" in said.err and "queries" in said.err


def test_a_text_in_place_of_vectors(loaded, capsys):
    assert cli.main(["invert", "--text", "a cat", "--queries", "256"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("argv, told", [([], "one of the two"), (["v.npy", "--text", "a"], "one of the two"), (["nothing.npy"], "does not exist"), (["--text", "a", "--queries", "3"], "--queries"),
                                        (["--text", "a", "--seconds", "0"], "--seconds"), (["--text", "a", "--seconds", "soon"], "--seconds"), (["--text", "cat "*60], "at most")])
def test_what_the_command_cannot_do_is_one_line(loaded, capsys, argv, told):
    assert cli.main(["invert", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == "" and told in said.err and len(said.err.splitlines()) == 1


def test_a_result_is_what_was_asked_for(by):
    found = by(by.encoder.encode(["a cat"])[0], queries=300)
    assert isinstance(found, Inversion) and {"kind", "text", "loss", "cosine", "queries", "seconds"} <= set(found.trace[0])
    queries = [r["queries"] for r in found.trace]
    assert queries == sorted(queries) and check_embedding(torch.ones(32), by.encoder).norm().item() == pytest.approx(1)
