"What survives decoding and encoding, what a token is inside a text, and what stands on both sides of a found text."
import time
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fuse_nb.autodan import AutoDAN
from fuse_nb.causal import CausalLM
from fuse_nb.losses import Fluency, Penalty, TargetText
from fuse_nb.objective import Objective, Term
from fuse_nb.slots import State
from fuse_nb.swaps import GCG, PEZ, RandomSearch
from fuse_nb.tokens import allowed_tokens, decoded, given_tokens, inside, survivors, token_strings
from test_models import byte_bpe
from test_search import made, own_cache, source_of  # noqa: F401 (fixtures)

transformers = pytest.importorskip("transformers")
SHARED = Path(__file__).resolve().parents[2].parent/"shared"/"tokenizers"
if not SHARED.exists(): SHARED = Path(__file__).resolve().parents[1].parent/"shared"/"tokenizers"
CHAT = """{% for m in messages %}<|{{ m['role'] }}|>
{{ m['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""


def shared(name):
    if not (SHARED/name).exists(): pytest.skip(f"needs ../shared/tokenizers/{name}")
    return transformers.AutoTokenizer.from_pretrained(SHARED/name)


def small(tokenizer, name, positions=64, family="gpt2"):
    torch.manual_seed(0)
    t, n = transformers, len(tokenizer)
    if family == "gpt2": model = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=n, n_embd=16, n_layer=1, n_head=2, n_positions=positions, bos_token_id=0, eos_token_id=0))
    else: model = t.LlamaForCausalLM(t.LlamaConfig(vocab_size=n, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=positions))
    return CausalLM(name, model.eval(), tokenizer, "cpu")


def breaks(chat=CHAT, **more):
    "A byte-level tokenizer in which two line breaks merge, as GPT-2's do, with chat marks."
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*letters, "ĊĊ", "Ġa", "at", "ca", "un", "be"])}
    k = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ"), ("Ġ", "a"), ("a", "t"), ("c", "a"), ("u", "n"), ("b", "e")]))
    k.pre_tokenizer, k.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    k = transformers.PreTrainedTokenizerFast(tokenizer_object=k, **more)
    k.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|system|>", "<|end|>", "<|assistant|>"]})
    k.chat_template = chat
    return k


@pytest.fixture
def gpt2_chat():
    k = shared("gpt2")
    k.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>", "<|assistant|>"]})
    k.chat_template = CHAT
    return small(k, "gpt2-chat")


LEFT, RIGHT = "<|user|>\nTell me about", "<|end|>\n<|assistant|>\n"


def full_check(source, row):
    "One row, by hand: the text as given, tokenized again."
    bos = source.bos_ids
    bare = row[len(bos):] if row[:len(bos)] == bos else row
    text = source.tokenizer.decode(bare, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return source.tokenizer(text, add_special_tokens=False)["input_ids"] == bare


@pytest.mark.parametrize("family", ["gpt2", "llama", "breaks"])
def test_survivors_equal_the_check_of_each_row(family):
    lm = small(breaks(), "breaks") if family == "breaks" else source_of(family)
    g = torch.Generator().manual_seed(0)
    rows = [lm.bos_ids + torch.randint(4, len(lm.tokenizer), (int(n),), generator=g).tolist() for n in torch.randint(1, 6, (300,), generator=g)]
    want = [i for i, r in enumerate(rows) if full_check(lm, r)]
    assert survivors(lm, rows) == want and 0 < len(want) < 300
    assert survivors(lm, []) == [] and survivors(lm, [torch.tensor(r) for r in rows]) == want
    texts = [lm.tokenizer.decode(r[len(lm.bos_ids):], clean_up_tokenization_spaces=False) for r in rows]
    assert decoded(lm, rows) == texts


@pytest.mark.parametrize("name", ["_decode", "batch_decode"])
def test_a_tokenizer_that_spells_in_its_own_way_is_asked(name):
    "The fast backend is asked in its place only where it adds nothing of its own."
    lm = source_of("gpt2")
    rows = [[5, 6, 7], [8, 9]]
    plain = decoded(lm, rows)
    kind = type(lm.tokenizer)
    own = {"_decode": lambda self, **o: kind._decode(self, **o) + "~", "batch_decode": lambda self, rows, **o: [t + "~" for t in kind.batch_decode(self, rows, **o)]}
    lm.tokenizer.__class__ = type("Own", (kind,), {name: own[name]})
    assert decoded(lm, rows) == [t + "~" for t in plain]


def test_line_breaks_around_a_mark_do_not_meet():
    lm = small(breaks(), "breaks")
    left, right = given_tokens(lm, "<|user|>\nTell me about", "\n<|end|>\n<|assistant|>\n")
    rows = [left + [v] + right for v in allowed_tokens(lm).nonzero().flatten().tolist()]
    assert survivors(lm, rows) == [i for i, r in enumerate(rows) if full_check(lm, r)]
    assert len(survivors(lm, rows)) > 80  # each letter by itself


def test_every_valid_token_of_a_chat_template_survives(gpt2_chat):
    "0 of 1,334 did, when special tokens were taken out of the text."
    lm = gpt2_chat
    left, right = given_tokens(lm, LEFT, RIGHT)
    tokens = [v for v in allowed_tokens(lm).nonzero().flatten().tolist() if token_strings(lm)[v].startswith(" ")][::30]
    rows = [left + [v] + right for v in tokens]
    keep = survivors(lm, rows)
    assert keep == [i for i, r in enumerate(rows) if full_check(lm, r)] and len(keep) > 0.98*len(rows)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_64_rows_of_512_tokens_are_checked_in_a_fifth_of_a_second(name):
    lm = small(shared(name), name)
    text = "the quick brown fox jumps over two lazy dogs and a man rides his unbelievable horse on the beach, said everyone. "*40
    ids, g = lm.tokenizer(text, add_special_tokens=False)["input_ids"][:512], torch.Generator().manual_seed(0)
    rows = [ids[:p] + [int(v)] + ids[p + 1:] for p, v in zip(torch.randint(512, (64,), generator=g).tolist(), torch.randint(1000, 30000, (64,), generator=g))]
    assert survivors(lm, rows) == [i for i, r in enumerate(rows) if full_check(lm, r)]
    took = []
    for _ in range(5):
        begin = time.process_time()
        survivors(lm, rows)
        took.append(time.process_time() - begin)
    assert min(took) < 0.2, took


SEARCHES = {
    "autodan": lambda **o: AutoDAN(**{**dict(steps=3, candidates=20, beam=2, ranker="lm", progress=False), **o}),
    "gcg": lambda **o: GCG(**{**dict(steps=3, candidates=20, length=4, progress=False), **o}),
    "pez": lambda **o: PEZ(**{**dict(steps=3, length=4, progress=False), **o}),
    "random": lambda **o: RandomSearch(**{**dict(steps=3, candidates=20, length=4, progress=False), **o}),
}


@pytest.mark.parametrize("kind", list(SEARCHES))
def test_a_result_keeps_the_template_as_given(kind):
    lm = small(breaks(), "breaks")
    r = SEARCHES[kind]().minimize(Objective(Term(TargetText(lm, "Sure")), source=lm), LEFT, RIGHT)
    assert r.text.startswith(LEFT) and r.text.endswith(RIGHT) and lm.tokenizer(r.text)["input_ids"] == r.ids
    assert r.evaluations > 1 or kind == "pez"
    assert r.loss == pytest.approx(TargetText(lm, "Sure").exact_ids([r.ids]).item(), abs=1e-4)


@pytest.mark.parametrize("kind", list(SEARCHES))
def test_a_search_in_gpt2s_chat_template(gpt2_chat, kind):
    r = SEARCHES[kind]().minimize(Objective(Term(TargetText(gpt2_chat, "Sure")), source=gpt2_chat), LEFT, RIGHT)
    assert r.text.startswith(LEFT) and r.text.endswith(RIGHT) and len(r.trace) == 3


# --- chats ------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", list(SEARCHES))
def test_chat_messages_are_prefix_and_suffix(kind):
    lm = small(breaks(), "breaks")
    say = lambda content: [dict(role="system", content="be brief"), dict(role="user", content=content)]
    search = lambda chat, **more: SEARCHES[kind]().minimize(Objective(Term(TargetText(lm, "Sure")), source=lm), chat=chat, **more)
    for chat, before, after, more in ((say("Tell me about"), "Tell me about", "", {}), (say("Tell {} now"), "Tell", " now", {}), (say("Tell me"), "Tell me of", "!", dict(prefix=" of", suffix="!"))):
        r = search(chat, **more)
        found = r.text.split(f"<|user|>\n{before}")[1]
        found = found[:found.index(f"{after}<|end|>\n<|assistant|>\n")]
        whole = say(before + found + after)
        assert r.text == lm.tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
        assert r.ids == lm.tokenizer.apply_chat_template(whole, add_generation_prompt=True)["input_ids"]


def test_a_chat_that_is_answered_has_no_generation_prompt():
    lm = small(breaks(), "breaks")
    left, right = given_tokens(lm, None, chat=[dict(role="user", content="who {}?"), dict(role="assistant", content="a cat")])
    assert decoded(lm, [left + right]) == ["<|user|>\nwho?<|end|>\n<|assistant|>\na cat<|end|>\n"]


def test_chats_that_cannot_be_read():
    lm, bare = small(breaks(), "breaks"), small(breaks(None), "bare")
    user = lambda c: dict(role="user", content=c)
    with pytest.raises(ValueError, match="bare has no chat template"): given_tokens(bare, None, chat=[user("a")])
    for chat, said in (([], "list of messages"), ("a", "list of messages"), ([1], "chat\\[0\\]"), ([dict(role="user")], "chat\\[0\\]"), ([user(3)], "chat\\[0\\]"),
                       ([user("{} {}")], "one {}"), ([user("{}"), user("{}")], "one {}"), ([dict(role="system", content="a")], "user message")):
        with pytest.raises((TypeError, ValueError), match=said): given_tokens(lm, None, chat=chat)
    lm.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="refuses it: no system role"): given_tokens(lm, None, chat=[user("a")])
    lm.tokenizer.chat_template = "{{ messages[0]['content'] }}{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="2 times"): given_tokens(lm, None, chat=[user("a")])
    lm.tokenizer.chat_template = "hello"
    with pytest.raises(ValueError, match="0 times"): given_tokens(lm, None, chat=[user("a")])


def test_a_run_with_one_chat_is_not_continued_with_another():
    lm = small(breaks(), "breaks")
    search = lambda content, **more: SEARCHES["random"](**more.pop("options", {})).minimize(Objective(Term(TargetText(lm, "Sure")), source=lm), chat=[dict(role="user", content=content)], **more)
    first = search("one")
    assert len(search("one", resume=first, options=dict(steps=4)).trace) == 4
    with pytest.raises(ValueError, match="that run had the chat"): search("two", resume=first)
    with pytest.raises(ValueError, match="that run had the"): SEARCHES["random"]().minimize(Objective(Term(TargetText(lm, "Sure")), source=lm), "one", resume=first)


# --- Llama: what a token is inside a text -------------------------------------------------------------------------------------------------------

@pytest.fixture
def llama(): return small(shared("llama"), "llama", family="llama")


def test_a_full_stop_inside_a_text(llama):
    strings = token_strings(llama)
    assert strings[inside(llama, ".")[0]] == "." and strings[llama.tokenizer(".", add_special_tokens=False)["input_ids"][0]] == " ."
    wants = Term(Penalty("natural stop", lambda t: 0.0 if t.endswith(".") and not t.endswith(" .") else 1.0))
    r = AutoDAN(steps=3, beam=2, candidates=30, ranker="lm", end=".", progress=False).minimize(Objective(Term(llama, 1e-3), wants), "An image of")
    assert r.text.endswith(".") and not r.text.endswith(" .") and r.terms["natural stop"] == 0 and llama.tokenizer(r.text)["input_ids"] == r.ids
    assert all(n["ids"][-1] != inside(llama, ".")[0] for t in r.trace for n in t["frontier"])  # a natural stop ends a text


def test_a_suffix_is_read_without_an_extra_space(llama):
    assert llama.tokenizer.decode(llama.tokenizer("a dog", add_special_tokens=False)["input_ids"] + inside(llama, ", on the beach")) == "a dog, on the beach"
    assert [token_strings(llama)[i] for i in inside(llama, ", on the beach")] == [",", " on", " the", " beach"]
    for text in (" on", "bout", "é", "\nnew", "0 1", ")", "...", "</s>"):
        assert llama.tokenizer.decode(llama.tokenizer("It", add_special_tokens=False)["input_ids"] + inside(llama, text)) == "It" + text
    r = AutoDAN(steps=3, beam=2, candidates=10, ranker="lm", progress=False).minimize(Objective(Term(Fluency(llama))), "An image of", ", on the beach")
    assert r.text.endswith(", on the beach") and not r.text.endswith(" , on the beach") and llama.tokenizer(r.text)["input_ids"] == r.ids


def test_a_begin_of_text_token_that_is_given_is_not_doubled():
    lm = source_of("llama")
    assert lm.bos_ids and given_tokens(lm, "<bos>a photo")[0] == given_tokens(lm, "a photo")[0] == lm.tokenizer("a photo")["input_ids"]
    assert decoded(lm, [given_tokens(lm, "a photo")[0]]) == ["a photo"]


# --- starts --------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["gcg", "pez", "random"])
def test_a_start_that_glues_is_never_a_result(kind):
    "The text of 'The u' and 'n be' is 'The un be': its own tokens are others, and its loss is another."
    lm = small(breaks(), "breaks")
    loss = TargetText(lm, "Sure")
    search = lambda **o: SEARCHES[kind](**o).minimize(Objective(Term(loss), source=lm), "The u", init="nique")
    glued = lm.tokenizer("The u")["input_ids"] + lm.tokenizer("nique")["input_ids"]
    assert survivors(lm, [glued]) == []
    try: r = search(steps=30, candidates=8) if kind != "pez" else search(steps=30)
    except ValueError as e: assert "nothing was found" in str(e) and kind == "pez"
    else:
        assert r.ids != glued and survivors(lm, [r.ids]) == [0] and lm.tokenizer(r.text)["input_ids"] == r.ids
        assert r.loss == pytest.approx(loss.exact_ids([lm.tokenizer(r.text)["input_ids"]]).item(), abs=1e-4)


def test_a_start_that_glues_says_what_to_do():
    "More steps are no cure where the one text that was tried is read with other tokens."
    lm = source_of("gpt2")
    objective = Objective(Term(TargetText(lm, " a dog")), source=lm)
    with pytest.raises(ValueError, match="read with other tokens than it was written with.*begin init with a space"):
        SEARCHES["pez"](steps=1).minimize(objective, "a ca", init="t")


def test_a_start_is_tokenized_with_what_stands_around_it():
    lm = small(breaks(), "breaks")
    seen = []
    class Watch:
        label, model = "watch", None
        def exact_ids(self, seqs, start=1, **more): seen.extend(map(list, seqs)); return torch.zeros(len(seqs))
    Watch.model = Watch.lm = lm
    RandomSearch(steps=1, candidates=1, progress=False).minimize(Objective(Term(Watch()), source=lm), "The", " end", init=" cat at")
    assert seen[0] == lm.tokenizer("The cat at end")["input_ids"]


@pytest.mark.parametrize("kind", ["gcg", "random"])
def test_a_start_of_256_tokens(kind):
    lm = small(shared("gpt2"), "gpt2-long", positions=400)
    r = SEARCHES[kind](length=256, steps=2, candidates=24).minimize(Objective(Term(TargetText(lm, " yes")), source=lm), "Once upon a time", "!")
    left, right = given_tokens(lm, "Once upon a time", "!")
    assert len(r.ids) == len(left) + 256 + len(right) and r.evaluations > 20 and r.stopped == "steps"
    assert lm.tokenizer(r.text)["input_ids"] == r.ids


@pytest.mark.parametrize("kind", ["gcg", "random", "autodan"])
def test_a_step_that_keeps_no_candidate_says_so(kind, monkeypatch):
    import fuse_nb.search as search_room
    lm = small(breaks(), "breaks")
    real, calls = search_room.survivors, []
    def later(source, rows):
        calls.append(len(rows))
        return real(source, rows) if len(calls) < 4 else []
    monkeypatch.setattr(search_room, "survivors", later)
    r = SEARCHES[kind](steps=9).minimize(Objective(Term(TargetText(lm, "Sure")), source=lm), "The")
    assert r.stopped == "no candidates survive" and len(r.trace) < 9 and r.text
    if kind == "autodan":
        calls[:] = [0]*9
        with pytest.raises(ValueError, match="no candidates survive"): SEARCHES[kind](steps=9).minimize(Objective(Term(TargetText(lm, "Sure")), source=lm), "The")


def test_token_strings_join_to_the_text():
    for lm in (source_of("gpt2"), source_of("llama"), small(breaks(), "breaks")):
        ids = lm.tokenizer("a cat on a mat", add_special_tokens=False)["input_ids"]
        assert "".join(token_strings(lm)[i] for i in ids) == "a cat on a mat"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_a_text_has_one_spelling_everywhere(made, family):  # noqa: F811
    "What the result says, what terms about texts read, and what a ranker reads: special tokens as given, without the first."
    lm = made[family]
    special = [i for i in lm.tokenizer.all_special_ids if i not in lm.bos_ids]
    ids = lm.tokenizer("a cat on a mat", add_special_tokens=False)["input_ids"]
    for row in (lm.bos_ids + ids, ids, lm.bos_ids + ids[:2] + special + ids[2:], lm.bos_ids + special + lm.bos_ids + ids):
        state = State(lm, row[:-1], torch.zeros(len(lm.embedding_table)), torch.ones(len(lm.embedding_table), dtype=torch.bool))
        want = decoded(lm, [row])
        assert Objective(Term(lm)).texts([row]) == want == state.texts(row[-1:])
        for i in special: assert lm.tokenizer.convert_ids_to_tokens(i) in want[0] or i not in row
