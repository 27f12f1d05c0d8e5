"Rooms 04, 05 and 20: where tokens lie, word lists, and what words, texts and ids may be given."
import json
import random
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_words import Scripted, WithoutOffsets, check_split, finest, load  # noqa: E402

from fuse_nb.offsets import (Located, check_ids, decode_all, decoded_spans, locate, prefix_spans,
                             special_ids)
from fuse_nb.vocabulary import coverage, word_ids, word_list
from fuse_nb.words import Word, merge, merge_embeds, split, split_embeds, whitespace_words, word_index

pytestmark = pytest.mark.filterwarnings("ignore:This sequence already has")


@lru_cache
def made(name):
    "Small tokenizers trained here, one a family."
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    words = word_list(2000)[0]
    corpus = words + [f" {w}" for w in words]
    if name == "byte-level" or name == "trimmed":
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=name == "trimmed")
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=1200, show_progress=False, special_tokens=["<|end|>"],
                                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        if name == "trimmed": t.post_processor = processors.ByteLevel(trim_offsets=True)
        t = PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|end|>", pad_token="<|end|>")
        t.add_tokens(["<device>"], special_tokens=True)
        return t
    t = Tokenizer(models.Unigram())
    t.normalizer, t.pre_tokenizer, t.decoder = normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace()
    t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=1200, show_progress=False, unk_token="<unk>", special_tokens=["<pad>", "<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="<pad>", unk_token="<unk>")


def get(name): return made(name) if name in ("byte-level", "trimmed", "unigram") else load(name)


def plain(tokenizer, text): return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def decode(tokenizer, ids): return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def spans_by_prefixes(tokenizer, ids):
    "The definition, written again: what each token adds to the beginning of the text that is spelled so far."
    text, ends = decode(tokenizer, ids), [0]
    for k in range(1, len(ids)):
        head, same = decode(tokenizer, ids[:k]), 0
        while same < min(len(head), len(text)) and head[same] == text[same]: same += 1
        ends.append(max(ends[-1], same))
    return list(zip(ends, ends[1:] + [len(text)]))


def draws(tokenizer, n, seed, longest=12):
    "Ids no tokenizer would write; half of them bytes and pieces of the same few characters, a true U+FFFD among them."
    rng = random.Random(seed)
    usable = [i for i in range(len(tokenizer)) if i not in special_ids(tokenizer)]
    few = [i for i in plain(tokenizer, "日é🐕\ufffd d\n") if i not in special_ids(tokenizer)] or usable
    return [[rng.choice(few if rng.random() < .6 else usable) for _ in range(rng.randrange(longest))] for _ in range(n)]


LOCAL = ("byte-level", "trimmed", "unigram", "minilm", "gemma-like", "old-llama-like", "byt5", "gpt2", "clip", "llama", "pegasus")


@pytest.mark.parametrize("name", LOCAL)
def test_decoded_spans_are_the_definition(name):
    tokenizer = get(name)
    rows = draws(tokenizer, 150, 0)
    texts = decode_all(tokenizer, rows)
    assert texts == [decode(tokenizer, r) for r in rows]
    for ids, spans in zip(rows, decoded_spans(tokenizer, texts, rows)):
        assert spans == (spans_by_prefixes(tokenizer, ids) if ids else [])


def test_half_a_character_and_none():
    "Bytes that form a U+FFFD of their own, bytes that form nothing, and a character after both: for both kinds of bytes."
    old = load("old-llama-like")
    def fallback(*codes): return [old.convert_tokens_to_ids(f"<0x{c:02X}>") for c in codes]
    real = [0xEF, 0xBF, 0xBD]
    for codes in ([0xE6, 0x97, 0xA5, *real], [*real, *real], [0xFF, *real], [0xE6, 0x97, 0xA5, 0xFF], [0x61, 0xFF], [0xFF, 0x20, 0x61], [0xE6, 0x97]):
        ids = fallback(*codes) + plain(old, "b")[-1:]
        assert decoded_spans(old, [decode(old, ids)], [ids]) == [spans_by_prefixes(old, ids)], codes
    ids = fallback(0xE6, 0x97, 0xA5, *real)
    assert decoded_spans(old, [decode(old, ids)], [ids]) == [[(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (1, 2)]]


class Counting:
    "Counts the tokens that are decoded."
    is_fast = False
    def __init__(self, tokenizer): self.tokenizer, self.decoded = tokenizer, 0
    def decode(self, ids, **kwargs):
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **kwargs)


@pytest.mark.parametrize("name,text", [("byte-level", "abc dog "), ("byte-level", "日本é"), ("byt5", "日本 é"), ("old-llama-like", "日本é"), ("unigram", "dog 1 ")])
def test_few_tokens_are_decoded_for_each(name, text):
    "Fault 3.3: a row of 512 tokens decodes a few tokens for each, not half the row; 131,328 is what the prefixes alone would take."
    tokenizer = get(name)
    letters = [i for c in text for i in plain(tokenizer, c)]
    ids = (letters*512)[:512]
    counting = Counting(tokenizer)
    spans = decoded_spans(counting, [decode(tokenizer, ids)], [ids])[0]
    assert counting.decoded < 12*len(ids)
    assert spans == spans_by_prefixes(tokenizer, ids)


def test_rows_go_abreast():
    "A batch costs as many calls of the decoder as its longest row has tokens, not as many as there are tokens."
    class Calls(Counting):
        calls = 0
        def decode_batch(self, batch, skip_special_tokens): raise AssertionError
    from fuse_nb import offsets
    tokenizer, calls, original = get("byte-level"), [], offsets.decode_all
    def counted(t, batch):
        calls.append(len(batch))
        return original(t, batch)
    rows = [plain(tokenizer, "q")*n for n in (3, 40, 7)]
    offsets.decode_all = counted
    try: spans = decoded_spans(tokenizer, ["q"*3, "q"*40, "q"*7], rows)
    finally: offsets.decode_all = original
    assert [len(s) for s in spans] == [3, 40, 7] and len(calls) <= 2*40 and max(calls) == 3


def test_a_decoder_that_looks_far_back_goes_by_the_definition():
    class Mirror:  # spells its ids backwards: no window says anything
        is_fast = False
        def decode(self, ids, **kwargs): return "".join("abcdefgh"[i] for i in reversed(ids))
    class Polite:  # says what it is about once it has three tokens
        is_fast = False
        def decode(self, ids, **kwargs): return ("> " if len(ids) > 2 else "") + "".join("abcdefgh"[i] for i in ids)
    class Swinging:  # every other token in capitals, counted from the first: windows are as long as they should be, and wrong
        is_fast = False
        def decode(self, ids, **kwargs): return "".join("abcdefgh"[i].upper() if k % 2 else "abcdefgh"[i] for k, i in enumerate(ids))
    class Closing:  # puts a full stop behind whatever it spells, so that the windows of a row are too short by it at the end
        is_fast = False
        def decode(self, ids, **kwargs): return "".join("abcdefgh"[i] for i in ids) + "."*(len(ids) > 3)
    for tokenizer in (Mirror(), Polite(), Swinging(), Closing()):
        for ids in ([0, 1, 2, 0, 1], [0, 0, 1], [3], [0, 0, 0, 0]):
            assert decoded_spans(tokenizer, [tokenizer.decode(ids)], [ids]) == [spans_by_prefixes(tokenizer, ids)]


@pytest.mark.parametrize("first", ("Q", "é", "🐕", "Quick"))
def test_a_trimmed_token_after_an_added_one(first):
    "Fault 2.9: the tokenizer adds a space, cuts it off the span though it is not there, and the span may come out empty."
    tokenizer = made("trimmed")
    text = f"a <device>{first} left"
    words = split(tokenizer, text)
    check_split(words, plain(tokenizer, text), text)
    assert [w.text for w in words] == ["a", f" <device>{first}", " left"]
    tokens = tokenizer.convert_ids_to_tokens(words[2].ids)
    assert "".join(tokens) == "Ġleft", "the token of the first character went to the word after it"


def test_an_empty_span_reaches_back():
    for text, spans, wanted in [
            ("<x>Q ran", [(0, 3), (4, 4), (4, 8)], [(0, 2, 0, 1), (2, 3, 1, 2)]),
            ("<x>QQ ran", [(0, 3), (5, 5), (5, 9)], [(0, 2, 0, 1), (2, 3, 1, 2)]),
            ("x Q ran", [(0, 1), (3, 3), (3, 7)], [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]),    # only Q is uncovered
            ("x a Q", [(0, 1), (5, 5)], [(0, 1, 0, 1), (1, 2, 1, 3)]),                             # two words are
            ("x  ran", [(0, 1), (3, 3), (3, 6)], [(0, 1, 0, 1), (1, 3, 1, 2)]),                   # only spaces are: with what follows
            ("x ran", [(0, 1), (1, 1), (1, 5)], [(0, 1, 0, 1), (1, 3, 1, 2)]),                    # nothing is
            ("x ran", [(0, 1), (0, 0), (1, 5)], [(0, 1, 0, 1), (1, 3, 1, 2)]),                    # it lies before what is covered
            ("Q ran", [(1, 1), (1, 5)], [(0, 1, 0, 1), (1, 2, 1, 2)]),                            # first of all
            ("ran", [(0, 3), (3, 3)], [(0, 2, 0, 1)])]:                                           # at the end, all covered
        assert [(w.start, w.stop, w.first, w.last) for w in split(Scripted(spans), text)] == wanted == finest(text, spans), text
        index = word_index(Scripted(spans), ["some Q", text, text])   # what one text covers says nothing about the next
        assert list(zip(*(x.tolist() for x in index[2][1:]))) == [(p, q) for a, b, p, q in wanted for _ in range(a, b)]


def test_special_ids_by_role():
    class Roles:
        all_special_ids, unk_token_id, pad_token_id, eos_token_id = [1, 2, 3], 3, 1, 2
        added_tokens_decoder = {7: type("T", (), {"special": True}), 8: type("T", (), {"special": False})}
    assert special_ids(Roles()) == {1, 2, 7}
    for role in ("bos", "eos", "pad", "cls", "sep", "mask"):
        both = Roles()
        setattr(both, f"{role}_token_id", 3)
        assert 3 in special_ids(both), role


def test_places_and_stretches_of_special_tokens():
    tokenizer = load("minilm")
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    red, dog = (plain(tokenizer, w)[0] for w in ("red", "dog"))
    a = locate(tokenizer, ["red dog", ""], add_special_tokens=True, padding="max_length", max_length=6)
    assert a.ids.tolist() == [cls, red, dog, sep, pad, pad] + [cls, sep] + [pad]*4 and a.rows.tolist() == [0, 6, 12]
    assert a.spans.tolist() == [[0, 0], [0, 3], [4, 7], [7, 7], [7, 7], [7, 7]] + [[0, 0]]*6
    assert a.special.tolist() == [True, False, False] + [True]*9 and a.texts == ["red dog", ""]
    assert a.stretch[1:3].tolist() == [[0, 7]]*2
    b = locate(tokenizer, [[cls, red, sep, sep, dog, pad], [], [dog]])
    assert b.texts == ["reddog", "", "dog"] and b.rows.tolist() == [0, 6, 6, 7]
    assert b.spans.tolist() == [[0, 0], [0, 3], [3, 3], [3, 3], [3, 6], [6, 6], [0, 3]]
    assert b.stretch.tolist() == [[0, 0], [0, 3], [3, 3], [3, 3], [3, 6], [6, 6], [0, 3]]
    assert isinstance(b, Located) and b.special.dtype == bool and b.spans.dtype == b.ids.dtype == np.int64


def test_text_that_no_token_spells_lies_before_the_closing_tokens():
    tokenizer = load("minilm")
    words = split(tokenizer, "\u0301 x \u0301", add_special_tokens=True)
    assert [(w.text, len(w.ids), w.special) for w in words] == [("", 1, True), ("\u0301", 0, False), (" x", 1, False), (" \u0301", 0, False), ("", 1, True)]
    assert [(w.text, w.special) for w in split(tokenizer, "\u0301 \u0301", add_special_tokens=True)] == [("\u0301", False), (" \u0301", False), ("", True), ("", True)]


def test_a_template_that_interrupts_the_text():
    "A special token between two of content: a place of its own, and a cut, also within a whitespace word."
    from types import SimpleNamespace as S
    class Template(Scripted):
        def __call__(self, texts, **kwargs):
            return S(encodings=[S(ids=[7, 1, 7, 2, 3, 7, 7], special_tokens_mask=[1, 0, 1, 0, 0, 1, 1], offsets=[(0, 0), (0, 2), (0, 0), (2, 3), (3, 7), (0, 0), (0, 0)]) for _ in texts])
    located = locate(Template([]), ["red ran x"])
    assert located.spans.tolist() == [[0, 0], [0, 2], [2, 2], [2, 3], [3, 7], [9, 9], [9, 9]]
    words = split(Template([]), "red ran x")
    assert [(w.text, w.first, w.last, w.special) for w in words] == [
        ("", 0, 0, True), ("re", 0, 1, False), ("", 1, 1, True), ("d", 0, 1, False), (" ran", 1, 2, False), (" x", 2, 3, False), ("", 3, 3, True), ("", 3, 3, True)]
    assert merge(words) == [7, 1, 7, 2, 3, 7, 7]


def test_no_word_reaches_over_a_special_token():
    "Numbers may be shared across it, words are not: neither by a token that spans two words behind it, nor by an empty one before it."
    from types import SimpleNamespace as S
    class Template(Scripted):
        def __call__(self, texts, **kwargs):
            n = len(self.spans)
            return S(encodings=[S(ids=[*range(n)], special_tokens_mask=[s is None for s in self.spans], offsets=[s or (0, 0) for s in self.spans]) for _ in texts])
    for text, spans, wanted in [("ab c", [(0, 1), None, (1, 4)], [(0, 1), (-1, -1), (0, 2)]), ("x y", [(0, 1), (1, 1), None, (1, 3)], [(0, 1), (0, 1), (-1, -1), (1, 2)])]:
        index = word_index(Template(spans), [text])
        assert list(zip(index.first.tolist(), index.last.tolist())) == wanted


def test_added_tokens_of_a_slow_tokenizer():
    byt5 = load("byt5")
    for text, options, special in [
            ("é", {}, [0, 0, 1]), ("", {}, [1]), ("ab", dict(padding="max_length", max_length=5), [0, 0, 1, 1, 1]),
            ("ab", dict(padding="max_length", max_length=5, padding_side="left"), [1, 1, 0, 0, 1]),
            ("abcdef", dict(truncation=True, max_length=3), [0, 0, 1]), ("a</s>b", {}, [0, 0, 0, 1]), ("</s>ab", dict(truncation=True, max_length=3), [0, 0, 1])]:
        located = locate(byt5, [text], add_special_tokens=True, **options)
        assert located.special.tolist() == [bool(x) for x in special], (text, options)
        assert located.ids.tolist() == list(byt5(text, **options).input_ids)


@pytest.mark.parametrize("name", ("byte-level", "unigram", "minilm", "gemma-like", "old-llama-like"))
def test_prefix_spans_lose_no_character(name):
    tokenizer, rng = get(name), random.Random(1)
    words = word_list(2000)[0]
    for _ in range(20):
        text = " ".join(rng.sample(words, 5)) + rng.choice(["", " ", "\n"])
        ids = plain(tokenizer, text)
        exact = tokenizer([text], add_special_tokens=False).encodings[0].offsets
        found = prefix_spans(tokenizer, text, ids)
        assert len(found) == len(ids) and all(a <= s and e <= z for (a, z), (s, e) in zip(found, exact) if text[s:e].strip())
        ends = np.cumsum([len(p) for p in whitespace_words(text)]).tolist()
        assert {z for _, z in found} <= set(ends) and (name == "gemma-like" or len({z for _, z in found}) >= 5)
        for k in range(len(ids)):    # truncated: the tokens that are left are found where they were
            cut = prefix_spans(tokenizer, text, ids[:k])
            assert len(cut) == k and [a for a, _ in cut] == [a for a, _ in found[:k]]


@pytest.mark.parametrize("name", ("byte-level", "minilm", "byt5", "old-llama-like"))
def test_a_batch_is_located_as_its_rows_are(name):
    tokenizer = get(name)
    eos = next(i for i in (tokenizer.sep_token_id, tokenizer.eos_token_id) if i is not None)
    rows = draws(tokenizer, 20, 3) + [[], [eos], [eos, *plain(tokenizer, "a b"), eos, *plain(tokenizer, "c")]]
    for batch, options in ((rows, {}), ([decode(tokenizer, r) for r in rows], {"add_special_tokens": True})):
        whole = locate(tokenizer, batch, **options)
        for b, row in enumerate(batch):
            one, t = locate(tokenizer, [row], **options), slice(*whole.rows[b:b + 2])
            assert one.texts[0] == whole.texts[b]
            for field in ("ids", "spans", "special", "stretch"): assert getattr(one, field).tolist() == getattr(whole, field)[t].tolist()
        index = word_index(tokenizer, batch, **options)
        for b, row in enumerate(batch):
            one = word_index(tokenizer, [row], **options)
            assert [x.tolist() for x in one[0]] == [x.tolist() for x in index[b]] and one.counts[0] == index.counts[b]
            assert one.counts[0] == max((w.last for w in split(tokenizer, row, **options)), default=0)


def test_ids_of_every_kind_are_read_or_refused_by_name():
    tokenizer = load("minilm")
    for good in ([5, 6], (5, 6), range(5, 7), np.array([5, 6], np.uint8), torch.tensor([5, 6], dtype=torch.int32), [np.int64(5), np.uint16(6)], [torch.tensor(5), 6]):
        got = check_ids("ids", good, tokenizer)
        assert got == [5, 6] and all(type(i) is int for i in got)
    empty = [check_ids("ids", x, tokenizer) for x in ([], (), np.array([]), torch.tensor([]))]
    assert empty == [[]]*4
    for bad in (None, 3, 3.5, b"ab", "ab", {5: 6}, {5, 6}, object(), np.float32(3), [1.5], [None], ["a"], [True], [5, True], [np.True_, 5], np.array([True]), torch.tensor([True]),
                [torch.tensor(True)], np.array([1.0]), torch.tensor(3), iter([5])):
        with pytest.raises(TypeError, match="^ids must be a text or a sequence of integer ids, got"): check_ids("ids", bad, tokenizer)
    for bad in ([[5]], [5, [6]], np.zeros((2, 2), int), torch.zeros(1, 1, dtype=torch.long), [np.array([5])], [torch.tensor([5, 6])]):
        with pytest.raises(ValueError, match="^ids must be one sequence of ids"): check_ids("ids", bad, tokenizer)
    n = len(tokenizer)
    for bad in (n, -1, 2**40, 2**70, -2**70):
        with pytest.raises(ValueError, match="^ids holds .* not in the tokenizer's vocabulary of"): check_ids("ids", [5, bad], tokenizer)
    assert check_ids("ids", [0, n - 1], tokenizer) == [0, n - 1]
    byt5 = load("byt5")
    assert check_ids("ids", [0, len(byt5) - 1], byt5) == [0, len(byt5) - 1]
    with pytest.raises(ValueError, match="vocabulary"): check_ids("ids", [10**6], byt5)


def test_words_are_refused_by_name():
    tokenizer = load("minilm")
    words = split(tokenizer, "red dogs")
    for match, call in [
            ("text_or_ids", lambda: split(tokenizer, [5, True])), ("text_or_ids", lambda: split(tokenizer, ["red", "dogs"])), ("text_or_ids", lambda: split(tokenizer, iter([5]))),
            ("tokenizer", lambda: split(None, "a")), ("tokenizer", lambda: split("bert", "a")), ("tokenizer", lambda: word_index(None, ["a"])), ("tokenizer", lambda: locate(print, [])),
            (r"batch\[1\]", lambda: word_index(tokenizer, [[5], None])), ("batch", lambda: word_index(tokenizer, None)), ("batch", lambda: word_index(tokenizer, 5)), ("batch", lambda: word_index(tokenizer, b"ab")),
            ("words", lambda: merge(None)), ("words", lambda: merge("red")), ("words", lambda: merge([1, 2])), ("words", lambda: merge(5)), ("words", lambda: merge([words[0], None])),
            ("words", lambda: split_embeds(torch.zeros(2, 3), None)), ("words", lambda: split_embeds(torch.zeros(2, 3), "ab")), ("embeds", lambda: split_embeds(np.zeros((2, 3)), words)), ("embeds", lambda: split_embeds(None, words)),
            ("blocks", lambda: merge_embeds(None)), ("blocks", lambda: merge_embeds(torch.zeros(2, 3))), (r"blocks\[1\]", lambda: merge_embeds([torch.zeros(1, 3), None]))]:
        with pytest.raises(TypeError, match=f"^{match} "): call()
    for match, call in [(r"batch\[1\]", lambda: word_index(tokenizer, ["a", "\udcff"])), (r"batch\[0\]", lambda: word_index(tokenizer, [[-1]])), ("text_or_ids", lambda: split(tokenizer, "\udcff")),
                        ("blocks", lambda: merge_embeds([])), ("embeds", lambda: split_embeds(torch.zeros(3), words))]:
        with pytest.raises(ValueError, match=f"^{match} "): call()
    assert merge(iter(words)) == merge(tuple(words)) == plain(tokenizer, "red dogs") and merge([]) == []
    assert word_index(tokenizer, (t for t in ["a", "b c"])).counts.tolist() == [1, 2]


def test_word_lists_are_refused_by_name():
    tokenizer = load("minilm")
    for call in [lambda: word_list("10"), lambda: word_list(None), lambda: word_list(1.5), lambda: word_list(True)]:
        with pytest.raises(TypeError, match="^n must be a whole number"): call()
    for bad in (-1, 10**23):
        with pytest.raises(ValueError, match="^n must be"): word_list(bad)
    for bad in (None, 5):
        with pytest.raises(TypeError, match="^lang must be a text"): word_list(5, bad)
    assert word_list(5, "en-GB")[0] == word_list(5)[0]    # what wordfreq takes for a language is one
    for f in (word_ids, coverage):
        for bad in ("cat", b"cat", None, 5):    # 6.2: a text is no list of its letters
            with pytest.raises(TypeError, match="^words must be a list of texts"): f(tokenizer, bad)
        for bad in ([None], ["a", 5], [["a"]]):
            with pytest.raises(TypeError, match=r"^words\[\d\] must be a text"): f(tokenizer, bad)
        with pytest.raises(ValueError, match=r"^words\[1\]"): f(tokenizer, ["a", "\ud83d"])
    for bad in ("ab", [None, "x"], ["a", "b"], {1: 2}, object()):
        with pytest.raises(TypeError, match="^shares must be numbers"): coverage(tokenizer, ["a", "b"], bad)
    for bad in ([.5], [[.5, .5]], .5, [1., -1.], [0., 0.], [np.inf, 1.], [np.nan, 1.]):
        with pytest.raises(ValueError, match="^shares must"): coverage(tokenizer, ["a", "b"], bad)
    for bad in ("8", None, 1.5, True):
        with pytest.raises(TypeError, match="^max_tokens must be a whole number"): coverage(tokenizer, ["a"], max_tokens=bad)
    for bad in (0, -1, 10**9):
        with pytest.raises(ValueError, match="^max_tokens must be"): coverage(tokenizer, ["a"], max_tokens=bad)
    assert coverage(tokenizer, ["a"], torch.tensor([2.]), max_tokens=np.int64(2)).weighted.tolist() == [1., 0.]


def test_a_word_whose_space_belongs_to_the_word_before():
    "The shortcut of word_ids does not hold where `a` is spelled otherwise before a space; then the spans say which tokens begin after it."
    class Greedy:
        is_fast, all_special_ids, added_tokens_decoder, unk_token_id = True, [], {}, None
        pieces = ["a ", "a", "dog", "s", " "]
        def encode(self, text):
            ids, spans, at = [], [], 0
            while at < len(text):
                i = next(i for i, p in enumerate(self.pieces) if text.startswith(p, at))
                ids.append(i); spans.append((at, at + len(self.pieces[i]))); at = spans[-1][1]
            return ids, spans
        def __call__(self, text, **kwargs):
            from types import SimpleNamespace as S
            batch = [self.encode(t) for t in ([text] if isinstance(text, str) else text)]
            class Out(dict): encodings = [S(ids=i, offsets=s, special_tokens_mask=[0]*len(i)) for i, s in batch]
            return Out(input_ids=batch[0][0] if isinstance(text, str) else [i for i, _ in batch])
    assert word_ids(Greedy(), ["dogs", "dog"]) == [[2, 3], [2]]
    assert word_ids(Greedy(), ["dogs"], leading_space=False) == [[2, 3]]


def test_a_word_made_by_hand():
    w = Word("a", [1], 0, 1)
    assert (w.first, w.last, w.special) == (0, 0, False) and w == Word(text="a", ids=[1], start=0, stop=1)
    with pytest.raises(AttributeError): w.start = 2


def test_the_wordindex_is_a_sequence():
    index = word_index(load("minilm"), ["red dogs", "ran", ""])
    assert index[-1][0].tolist() == [] and index[-2][0].tolist() == index[1][0].tolist() and len(index) == 3
    for bad in (3, -4):
        with pytest.raises(IndexError): index[bad]


def test_a_slow_tokenizer_gives_the_words_of_its_fast_twin_from_ids():
    tokenizer = load("minilm")
    for text in ("an unbelievable story", "red  dogs\tran ", "x"):
        ids = plain(tokenizer, text)
        assert [(w.text, w.ids) for w in split(WithoutOffsets(tokenizer), ids)] == [(w.text, w.ids) for w in split(tokenizer, ids)]


def test_runs_that_spell_nothing():
    "Between special tokens, at either end, alone: such a token has a word, and takes no character."
    tokenizer = load("old-llama-like")
    mark, eos, (b,) = tokenizer.convert_tokens_to_ids("▁"), tokenizer.eos_token_id, [tokenizer.convert_tokens_to_ids("b")]
    for ids, wanted in [([mark], [("", 0, 1)]), ([mark, eos, b], [("", 0, 1), ("b", 0, 1)]), ([b, eos, mark], [("b", 0, 1), ("", 0, 1)]), ([b, eos, mark, eos, b], [("b", 0, 1), ("", 0, 1), ("b", 0, 1)])]:
        words = split(tokenizer, ids)
        assert [(w.text, w.first, w.last) for w in words if not w.special] == wanted, ids
        assert merge(words) == ids and all(isinstance(w, Word) for w in words)


def test_the_record_of_coverage_is_that_of_the_function():
    record = json.loads((Path(__file__).resolve().parents[1]/"data"/"coverage_llama.json").read_text())
    assert [len(r["within"]) for r in record["rows"]] == [8]*len(record["rows"]) and record["paper"]["share_within_4"] == .976


class Reads:
    "ByT5's tokenizer, which has no offsets; counts the characters that it is given."
    is_fast = False

    def __init__(self): self.tokenizer, self.read = load("byt5"), 0

    def __call__(self, text, **options):
        self.read += len(text)
        return self.tokenizer(text, **options)


def test_prefix_spans_of_a_long_text_read_a_word_a_few_times():
    words = random.Random(0).sample(word_list(2000)[0], 400)
    for joiner in (" ", "  ", "\n"):
        counting, text = Reads(), joiner.join(words)
        spans = prefix_spans(counting, text, plain(counting.tokenizer, text))
        ends = np.cumsum([len(joiner) + len(w) for w in words]) - len(joiner)
        begins = np.concatenate([[0], ends[:-1]])
        assert spans == [(a, z) for a, z in zip(begins.tolist(), ends.tolist()) for _ in range(z - a)]    # ASCII: a byte a character
        assert counting.read < 6*len(text)


@pytest.mark.parametrize("name", ("byte-level", "trimmed", "unigram", "minilm", "gemma-like", "old-llama-like", "byt5"))
def test_prefix_spans_are_where_the_beginning_of_the_text_gives_the_beginning_of_the_tokens(name):
    "Written again from the definition; texts of runs of spaces, unknown characters and special tokens' names, whole and truncated."
    tokenizer, rng = get(name), random.Random(2)
    bits = ["un", "its", " ", "  ", "\n", "é", "日本", ".", ", ", "Two", " a", "b c", "\ufffd", "'s", "\t", "</s>"]
    for _ in range(60):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(1, 30)))
        ids = plain(tokenizer, text)
        for content in (ids, ids[:len(ids)//2]):
            wanted, begin = [], 0
            for end in range(1, len(text) + 1):
                last = end == len(text)
                if not last and (text[end - 1].isspace() or not text[end].isspace()): continue
                head = content if last else plain(tokenizer, text[:end])[:len(content)]
                if len(head) < len(wanted) or head != content[:len(head)]: continue
                wanted, begin = wanted + [(begin, end)]*(len(head) - len(wanted)), end
            assert prefix_spans(tokenizer, text, content) == wanted + [(begin, len(text))]*(len(content) - len(wanted)), (text, content)
