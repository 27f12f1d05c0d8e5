"""E4, tokenizers: is split and merge exact, is a known map found again, what does mismatch cost? -> data/e4_tokenizers.json

    python tests/experiment_E4.py [--short] [--only exact,coverage,recovery,validity,meaning] [--out FILE]

Every part of the file is written when it is done; a run that is started again keeps what is there. Real tokenizers come from installed packages and, where it
is there, from ../shared/tokenizers (which no part of the project may need): a row that needs one that is absent is left out, and the file says which.
"""
import argparse, json, os, random, time, unicodedata, warnings
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch

from fuse_nb import FuseAdapter, TextEncoder, bridge
from bench_inversion import f1
from fuse_nb.agreement import rank_correlation
from fuse_nb.alignment import align, align_index
from fuse_nb.gradient import route
from fuse_nb.offsets import decode_all, special_ids
from fuse_nb.store import write_json
from fuse_nb.words import coverage, merge, split, word_ids, word_index, word_list
from machine import SEARCH, made

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("FUSE_NB_SHARED") or ROOT.parent.parent/"shared")/"tokenizers"
KINDS = ("byte-level BPE", "CLIP's BPE", "SentencePiece BPE (Gemma)", "SentencePiece BPE (Llama)", "Unigram", "WordPiece")
REAL = ("gpt2", "smollm2", "clip", "gemma3", "llama", "pegasus", "minilm")
LOSSLESS = ("byte-level BPE", "SentencePiece BPE (Gemma)", "byte-level BPE across words", "gpt2", "smollm2", "gemma3")  # theory: text -> ids -> text is the identity
TEXTS = [t["text"] for t in json.loads((ROOT/"data"/"inversion_texts.json").read_text())["texts"]]
INVERSIONS = len(TEXTS)
TEXTS += [
    "Three swans cross a narrow canal at dawn", "The gardener sells honey and candles on Saturdays", "A clock without hands hangs above the counter", "Her brother repairs bicycles in an old chapel",
    "Snow covered the vineyard before the harvest was over", "Nobody remembered where the treasure map was hidden", "The librarian whispered a recipe for onion soup", "Two fishermen argue about the price of a wooden rudder",
    "A violin teacher waits for the last bus with a wet umbrella", "The committee postponed its decision on the hospital roof", "Lightning struck the lighthouse twice in one evening", "A pilot photographs volcanoes from a small yellow aeroplane",
    "Children build a castle of cardboard boxes behind the theatre", "The translator misread a single comma and apologised"]
HARD = ["", " ", "a", " a", "a  b", "two  spaces and   three ", "\ta\nb\r\n", "Zürich's naïve café — 12,345.67 €", "👩‍👩‍👧 family 🙂🙂", "don't stop-believin' (ever)", "e\u0301 combined", "\u00a0no\u2009break\u3000space",
        "今天天气很好，我们去公园散步。", "吾輩は猫である。名前はまだ無い。", "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "שלום עולם", "مرحبا بالعالم", "Ещё один пример", "한국어 띄어쓰기", "x"*200, "http://a.b/c?d=e&f=g#h", "\x00\x01control", "[CLS] <s> </s> <unk>", "ﬁne ﬂow №½"]
UNSPACED = ("今天天气很好，我们去公园散步。", "吾輩は猫である。名前はまだ無い。", "ภาษาไทยไม่มีช่องว่างระหว่างคำ")


# ---- tokenizers

def sentences(n, seed=0, top=20_000):
    "Lines of ten words, drawn by their share in English."
    words, share = word_list(top)
    rng = np.random.default_rng(seed)
    return [" ".join(words[i] for i in rng.choice(len(words), 10, p=share/share.sum())) for _ in range(n)]


@lru_cache
def trained(kind, size=4000, lines=20_000):
    "A small tokenizer of a kind, trained here; 'byte-level BPE across words' has no word boundary at all."
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    corpus, special = sentences(lines) + word_list(5000)[0], ["<pad>", "<unk>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = dict(vocab_size=size, special_tokens=special, show_progress=False)
    if kind.startswith("byte-level"):
        t = Tokenizer(models.BPE())
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        t.pre_tokenizer = whole if kind.endswith("across words") else pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder, trainer = decoders.ByteLevel(), trainers.BpeTrainer(initial_alphabet=letters, **options)
        if kind.endswith("across words"): corpus = [" ".join(s.split()[k:k + 3]) for s in corpus for k in (0, 3, 6)]
    elif kind.startswith("CLIP"):
        t = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
        t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder, trainer = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")]), trainers.BpeTrainer(initial_alphabet=letters, end_of_word_suffix="</w>", **options)
    elif kind.startswith("SentencePiece"):
        t, llama = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)), "Llama" in kind
        replace = normalizers.Replace(" ", "▁")
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if llama else replace
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + [decoders.Strip(" ", 1, 0)]*llama)
        bytes_ = [f"<0x{b:02X}>" for b in range(256)]
        trainer = trainers.BpeTrainer(**options | dict(special_tokens=special + bytes_))
        corpus = [x if llama else " " + x for s in corpus for x in s.split()]
    elif kind == "Unigram":
        t = Tokenizer(models.Unigram())
        t.normalizer, t.pre_tokenizer, t.decoder = normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    else:
        t = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=1000))
        t.normalizer, t.pre_tokenizer, t.decoder = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**options)
    t.train_from_iterator(corpus, trainer)
    raw = json.loads(t.to_str())  # a trainer makes the bytes special tokens, which spell nothing; in published tokenizers they are ordinary
    raw["added_tokens"] = [a for a in raw["added_tokens"] if not a["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@lru_cache
def real(name):
    "A published tokenizer, or None where it is not on this machine."
    from transformers import AutoTokenizer
    try:
        if name == "minilm": return encoder().tokenizer
        if name in ("smollm2", "gemma3"): return causal(name).tokenizer
        return AutoTokenizer.from_pretrained(SHARED/name) if (SHARED/name).is_dir() else None
    except (FileNotFoundError, ImportError, ValueError): return None


@lru_cache
def causal(name):
    from fuse_nb import CausalLM
    return CausalLM.from_pretrained({"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}[name], device="cpu")


@lru_cache
def encoder(): return TextEncoder.from_pretrained("minilm", device="cpu")


@lru_cache
def pieces_of_minilm(keep=None, permuted=False, seed=0):
    "MiniLM's vocabulary with its letters and the first `keep` tokens only, perhaps in another order -> tokenizer, and for each id that of MiniLM."
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    raw = json.loads(encoder().tokenizer.backend_tokenizer.to_str())
    old = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    fixed = {a["id"] for a in raw["added_tokens"]}
    plain = [i for i in range(len(old)) if i not in fixed]
    rows = np.arange(len(old))
    if permuted: rows[plain] = np.random.default_rng(seed).permutation(plain)
    rank = {i: k for k, i in enumerate(i for i in plain if not old[i].startswith("[unused"))}
    kept = lambda i: i in fixed or len(old[i].removeprefix("##")) == 1 or keep is None or rank.get(i, keep) < keep
    raw["model"]["vocab"] = {old[i] if kept(i) else f"\ue000{i}": new for new, i in enumerate(rows.tolist())}  # a string that no text holds
    raw["model"]["max_input_chars_per_word"] = 1000
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), model_max_length=512, **names), torch.from_numpy(rows)


def all_tokenizers(short=False):
    "name -> tokenizer: trained here, published, synthetic."
    found = {k: trained(k) for k in (*KINDS, "byte-level BPE across words")}
    if not short: found |= {n: t for n in REAL if (t := real(n)) is not None}
    return found | {"permuted": pieces_of_minilm(permuted=True)[0], "finer (1,500 pieces)": pieces_of_minilm(1500)[0]}


# ---- exact?

def plain(text):
    "What survives every normalizer: letters without case, accents or spaces."
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).lower())
    return "".join(c for c in text if not c.isspace() and not unicodedata.combining(c) and unicodedata.category(c) not in ("Cc", "Cf", "Cn"))


def ids_of(t, text): return list(t(text, add_special_tokens=False, verbose=False)["input_ids"])


def random_text(rng):
    "Words, hard strings and white space in any order."
    words = word_list(5000)[0]
    parts = [rng.choice(words) if rng.random() < 0.8 else rng.choice(HARD) for _ in range(rng.randint(1, 9))]
    return "".join(p + rng.choice([" ", " ", " ", "  ", "", "\n"]) for p in parts)


def exactness(n, short):
    "For each tokenizer and for each pair of them, shares of n texts (and of as many random sequences of ids) with what theory promises."
    rng = random.Random(0)
    texts = (HARD + TEXTS + [random_text(rng) for _ in range(n)])[:n]
    tokenizers, rows = all_tokenizers(short), {}
    for name, t in tokenizers.items():
        raw = t.convert_ids_to_tokens(range(len(t)))
        hidden = special_ids(t)
        usable = [i for i in range(len(t)) if i not in hidden and raw[i] is not None and not raw[i].startswith("\ue000")]
        foreign = [rng.choices(usable, k=rng.randint(1, 12)) for _ in range(n)]
        spelled = decode_all(t, foreign)
        row = dict(texts=n, vocabulary=len(t),
                   merge=sum(merge(split(t, x)) == ids_of(t, x) for x in texts), merge_ids=sum(merge(split(t, i)) == i for i in foreign),
                   joined=sum("".join(w.text for w in split(t, x)) == x for x in texts), joined_ids=sum("".join(w.text for w in split(t, i)) == s for i, s in zip(foreign, spelled)),
                   back=sum(decode_all(t, [ids_of(t, x)])[0] == x for x in texts), reencoded=sum(ids_of(t, s) == i for i, s in zip(foreign, spelled)))
        row |= dict(lossless=name in LOSSLESS, changed=[x for x in texts if decode_all(t, [ids_of(t, x)])[0] != x][:2] if name in LOSSLESS else [])
        rows[name] = row
        print(f"{name:32s} {row}", flush=True)
    return dict(rows=rows, pairs=pairs_exact(tokenizers, texts))


def pairs_exact(tokenizers, texts):
    "Every ordered pair: groups must hold each token once, in order, and both sides' tokens must spell the same letters."
    unknown = {k: t.unk_token_id for k, t in tokenizers.items()}
    names, out = list(tokenizers), dict(pairs=0, texts=0, covered=0, groups=0, alike=0, left_out=0, fast=0)
    some = texts[:: max(1, len(texts)//60)]
    words = {k: [split(t, x) for x in some] for k, t in tokenizers.items()}
    for a in names:
        for b in names:
            if a == b: continue
            A, B = tokenizers[a], tokenizers[b]
            out["pairs"] += 1
            fast = align_index(word_index(A, some), word_index(B, some))
            for k, x in enumerate(some):
                left, right = words[a][k], words[b][k]
                groups, ids = align(left, right), (merge(left), merge(right))
                ours = [(s.start, s.stop, t.start, t.stop) for s, t in groups]
                out["texts"] += 1
                out["fast"] += ours == [tuple(int(v[g]) for v in fast[1:]) for g in np.flatnonzero(fast.row == k)]
                out["covered"] += all([i for g in groups for i in ids[s][g[s]]] == [i for w in (left, right)[s] if not w.special for i in w.ids] for s in (0, 1))
                for g in groups:
                    parts = [ids[s][g[s]] for s in (0, 1)]
                    if unknown[a] in parts[0] or unknown[b] in parts[1] or not parts[0] or not parts[1]: out["left_out"] += 1; continue
                    told = [plain(s) for s in (decode_all(A, [parts[0]])[0], decode_all(B, [parts[1]])[0])]
                    out["groups"] += 1
                    out["alike"] += told[0] == told[1]
                    if told[0] != told[1] and "unlike" not in out: out["unlike"] = [a, b, x, *told]
    print(out, flush=True)
    return out


# ---- coverage

def counts_of(t, words): return np.array([len(i) for i in word_ids(t, words)])


def coverages(n, short):
    "Words by token count, alone and beside MiniLM's; weighted by their share of running English; and whole texts of languages without spaces."
    words, share = word_list(n)
    share, target, rows = share/share.sum(), counts_of(encoder().tokenizer, words), {}
    for name, t in all_tokenizers(short).items():
        c = coverage(t, words, share)
        both = np.maximum(counts_of(t, words), target)
        row = dict(vocabulary=len(t), within=np.round(c.within, 4).tolist(), weighted=np.round(c.weighted_within, 4).tolist(),
                   pair_within=[round(float((both <= l).mean()), 4) for l in range(1, 9)], pair_weighted=[round(float(share[both <= l].sum()), 4) for l in range(1, 9)],
                   unequal=round(float((counts_of(t, words) != target).mean()), 4), unequal_weighted=round(float(share[counts_of(t, words) != target].sum()), 4),
                   unspaced_tokens=[len(ids_of(t, x)) for x in UNSPACED], unspaced_words=[len(split(t, x)) for x in UNSPACED])
        rows[name] = row
        print(f"{name:32s} {row}", flush=True)
    return dict(words=n, target="minilm", rows=rows)


# ---- is a known map found again?

def model_of(tokenizer, table, name): return SimpleNamespace(tokenizer=tokenizer, embedding_table=table, name=name, max_length=512, device=table.device)


def known_map(kind, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(d, d, generator=g, dtype=torch.float64)/d**0.5
    return torch.linalg.qr(W)[0] if kind == "orthogonal" else W


def quiet_fit(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FuseAdapter.fit(*args, **options)


def recovery(sizes, seeds):
    "MiniLM's vocabulary in another order, its table through a known map W and noise: T_l should be W^-1 in slice 0 and zero behind."
    t, rows = pieces_of_minilm(permuted=True)
    target, out = encoder(), []
    F = target.embedding_table.detach().double()
    for kind, noise, ridge in (("orthogonal", 0.0, "auto"), ("orthogonal", 0.1, "auto"), ("orthogonal", 0.3, "auto"), ("orthogonal", 1.0, "auto"), ("gaussian", 0.0, "auto"), ("gaussian", 0.0, 0.0)):
        for n in sizes:
            for seed in seeds if n < 2000 else seeds[:1]:
                W, g = known_map(kind, F.shape[1], seed), torch.Generator().manual_seed(seed + 100)
                s = noise*F.std().item()
                E = (F[rows] @ W + s*torch.randn(F.shape, generator=g, dtype=torch.float64)).float()
                words = np.random.default_rng(seed).permutation(word_list(40_000)[0])[:n].tolist()
                a = quiet_fit(model_of(t, E, "permuted"), target, words, forms=("text",), seed=seed, max_tokens=3, ridge=ridge)
                out.append(dict(map=kind, noise=noise, ridge=ridge, words=n, seed=seed) | _against(a, W, F[[i[0] for i in word_ids(target.tokenizer, words) if len(i) == 1]] @ W, s))
                print(out[-1], flush=True)
    return dict(d=F.shape[1], rows=out)


def _against(a, W, X, s):
    "Relative errors of T_l; for l = 1 also that of the limit (S + s^2)^-1 S W^-1, which is all that least squares sees of a map under noise s in what it reads."
    row, back = dict(error={}, spellings={}, r2={}), torch.linalg.inv(W)
    for l, T in a.tensors.items():
        want = torch.zeros_like(T, dtype=torch.float64)
        want[..., 0] = back
        row["error"][l] = float(f"{((T.double() - want).norm()/want.norm()).item():.3g}")
        row["spellings"][l] = a.coverage["classes"][l].get("spellings", 0)
        row["r2"][l] = (a.coverage["classes"][l]["held_out"] or {}).get("r2")
    S = X.T @ X/len(X)
    if len(X) > len(S):
        limit = torch.linalg.solve(S + s**2*torch.eye(len(S), dtype=S.dtype), S @ back)
        row["limit"] = float(f"{((limit - back).norm()/back.norm()).item():.3g}")
    return row


def merging(keep, n, d=48, seed=0):
    "A world where a token's vector is the sum of its letters' vectors, on both sides: a word's pieces then add up to the word, and every linear map could say so."
    g = torch.Generator().manual_seed(seed)
    letters = torch.randn(0x3000, d, generator=g, dtype=torch.float64)
    whole, fine = encoder().tokenizer, pieces_of_minilm(keep)[0]
    def table(t): return torch.stack([letters[[min(ord(c), 0x2fff) for c in r.removeprefix("##")]].sum(0) if r else letters[0]*0 for r in t.convert_ids_to_tokens(range(len(t)))])
    E, out = {"fine": table(fine), "whole": table(whole)}, []
    words = word_list(n)[0]
    for a, b, A, B in (("fine", "whole", fine, whole), ("whole", "fine", whole, fine)):
        S, T = word_ids(A, words), word_ids(B, words)
        adapter = quiet_fit(model_of(A, E[a].float(), a), model_of(B, E[b].float(), b), words, forms=("text",), ridge=0.0)
        for pair in ((1, 1), (2, 2), (2, 1), (1, 2), (3, 1), (1, 3), (3, 2), (2, 3)):
            at = [k for k in range(len(words)) if (len(S[k]), len(T[k])) == pair]
            if len(at) < 4*d: continue
            X, Y = (E[side][torch.tensor([ids[k] for k in at])] for side, ids in ((a, S), (b, T)))     # (n, tokens, d)
            said = adapter.predict(X.float(), pair[1]).double()
            total = (Y - Y.mean((0, 1))).square().sum()
            r2 = lambda P: round(1 - ((P - Y).square().sum()/total).item(), 4)
            out.append(dict(source=a, pair=pair, words=len(at), adapter=r2(said), circular=r2(_circular(X, Y)), linear=r2(_linear(X, Y))))
            print(out[-1], flush=True)
    return dict(keep=keep, words=n, d=d, rows=out)


def _linear(X, Y):
    "The best linear map of all source tokens to all target tokens, by numpy."
    x, y = X.flatten(1).numpy(), Y.flatten(1).numpy()
    return torch.from_numpy(x @ np.linalg.lstsq(x, y, rcond=1e-9)[0]).view_as(Y)


def _circular(X, Y):
    "The best map by t-product of zero-padded tubes, one frequency at a time, by numpy: an independent computation of what the adapter should reach."
    l = max(X.shape[1], Y.shape[1])
    x, y = (np.fft.fft(np.pad(v.numpy(), ((0, 0), (0, l - v.shape[1]), (0, 0))), axis=1) for v in (X, Y))
    P = np.stack([x[:, k] @ np.linalg.lstsq(x[:, k], y[:, k], rcond=1e-9)[0] for k in range(l)], 1)
    return torch.from_numpy(np.fft.ifft(P, axis=1).real[:, :Y.shape[1]].copy())


# ---- validity against mismatch

def spelled_table(t, target):
    "For each token the mean of the target's embeddings of what it spells: a table with which only the tokenizer differs."
    table, strings = target.embedding_table.detach().double(), decode_all(t, [[i] for i in range(len(t))])
    raw, tok = t.convert_ids_to_tokens(range(len(t))), target.tokenizer
    lead, out = ids_of(tok, "a"), torch.zeros(len(t), table.shape[1], dtype=torch.float64)
    marks = next((m for m in ("##", "</w>") if any(r and m in r for r in raw)), "Ġ")
    inside = lambda r: r is not None and {"##": r.startswith("##"), "</w>": False, "Ġ": not r.startswith(("Ġ", "▁"))}[marks]
    for i, (s, r) in enumerate(zip(strings, raw)):
        s = s.strip().removeprefix("##")
        if not s or i in t.all_special_ids: continue
        ids = ids_of(tok, "a" + s) if inside(r) and s[0].isalnum() else ids_of(tok, s)
        if inside(r) and ids[:1] == lead and s[0].isalnum(): ids = ids[1:]
        if ids: out[i] = table[ids].mean(0)
    return out


def pools(t):
    "Tokens that begin a word, tokens that do not: those of the 5,000 commonest words."
    begin, inside = set(), set()
    for ids in word_ids(t, word_list(5000)[0]):
        begin |= set(ids[:1]); inside |= set(ids[1:])
    return sorted(begin), sorted(inside)


def swaps(source, target, adapter, texts, goals, seed=0, slots=3, candidates=48, tried=16, only=None, spelled=None):
    "For tokens of each text: Spearman of predicted and exact change over replacements of the same sort; the gradient is the mean at `tried` others, as in the ranker `fuse`. With a table of spellings, what it says without an adapter too."
    t, E, out = source.tokenizer, source.embedding_table, []
    begin, inside = pools(t)
    for k, (text, goal) in enumerate(zip(texts, goals)):
        rng, loss, ids = random.Random(1000*seed + k), target.text(goal), ids_of(t, text)
        ours, theirs = word_index(t, [ids]), word_index(target.tokenizer, decode_all(t, [ids]))
        groups = align_index(ours, theirs)
        where = [(i, np.flatnonzero((groups.source_start <= i) & (i < groups.source_stop))) for i in range(len(ids))]
        counts = {i: tuple(int((groups[s + 1] - groups[s])[at[0]]) for s in (1, 3)) if len(at) else (0, 0) for i, at in where}
        usable = [i for i in counts if only is None or only(*counts[i])]
        for i in rng.sample(usable, min(slots, len(usable))):
            pool = begin if ids[i] in begin else inside
            if len(pool) < candidates + tried: continue
            new = rng.sample(pool, candidates + tried)
            table = [ids[:i] + [v] + ids[i + 1:] for v in new]
            leaf = E[torch.tensor(table[candidates:])].clone().requires_grad_()
            grad = torch.autograd.grad(loss.losses(*bridge(adapter, leaf, table[candidates:])).sum(), leaf)[0][:, i].mean(0)
            new, exact = new[:candidates], loss.exact(decode_all(t, table[:candidates]))
            if exact.std() == 0: continue
            out.append(dict(text=k, counts=list(counts[i]), spearman=rank_correlation(E[new] @ grad, exact)))
            if spelled is not None: out[-1]["spelling"] = rank_correlation(spelled[new] @ at_word(adapter, table[candidates:], i, target, loss), exact)
    return out


def at_word(adapter, rows, i, target, loss):
    "The mean over rows of the target's gradient, summed over the target tokens of the word of source token i: what the spelling table is multiplied with."
    path = route(adapter, rows)
    ids, mask = target.pad(path.target_ids)
    leaf = target.embed(ids).detach().requires_grad_()
    grad = torch.autograd.grad(loss.losses(leaf, mask).sum(), leaf)[0]
    return (grad*path.word_of(i)[..., None]).sum(1).mean(0)


def mean_within(values, seed=0):
    "Mean and its bootstrap interval of 95 %, of few values too: a short form has no more."
    values = np.asarray(values)
    draws = np.random.default_rng(seed).choice(values, (2000, len(values))).mean(1)
    return {k: round(float(x), 4) for k, x in dict(mean=values.mean(), low=np.quantile(draws, .025), high=np.quantile(draws, .975)).items()}


def summary(found, seed=0):
    "Mean over texts, 95 % bootstrap interval over texts; by whether the slot's word has equal counts."
    def mean(rows):
        if not rows: return None
        by = {}
        for r in rows: by.setdefault(r["text"], []).append(r["spearman"])
        found = mean_within([np.mean(v) for v in by.values()], seed)
        return dict(spearman=found.pop("mean"), **found, slots=len(rows), texts=len(by))
    equal = lambda r: r["counts"][0] == r["counts"][1]
    long = lambda r: max(r["counts"]) > 4
    return dict(all=mean(found), equal=mean([r for r in found if equal(r)]), unequal=mean([r for r in found if not equal(r) and not long(r)]), beyond_4=mean([r for r in found if long(r)]),
                unequal_slots=round(float(np.mean([not equal(r) for r in found])), 4))


def unspaced(text, p, rng): return "".join(c for c in text if c != " " or rng.random() >= p)


def conditions(short):
    "name -> (sort, source tokenizer, source's rows of MiniLM or a table, target tokenizer, share of spaces taken away)"
    whole, rows = pieces_of_minilm(permuted=True)
    out = {"permuted": ("permuted", whole, rows, None, 0.0), "shuffled rows (no map)": ("baseline", whole, rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))], None, 0.0)}
    for K in (20_000, 10_000, 5000, 2500, 1200, 600, 200) if not short else (5000, 600):
        t, r = pieces_of_minilm(K, permuted=True)
        out[f"finer, {K} pieces"] = ("finer", t, r, None, 0.0)
        out[f"coarser, {K} pieces"] = ("coarser", whole, rows, pieces_of_minilm(K)[0], 0.0)
    t, r = pieces_of_minilm(5000, permuted=True)
    for p in (0.25, 0.5, 0.75, 1.0) if not short else (1.0,): out[f"finer, 5000 pieces, {p:.0%} of spaces gone"] = ("unspaced", t, r, None, p)
    for p in (0.5, 1.0): out[f"permuted, {p:.0%} of spaces gone"] = ("unspaced, same pieces", whole, rows, None, p)
    for kind in (*KINDS, "byte-level BPE across words"): out[kind] = ("kind", trained(kind), None, None, 0.0)
    if not short:
        out |= {f"{n}'s tokenizer": ("published", t, None, None, 0.0) for n in REAL[:-1] if (t := real(n)) is not None}
        for n in ("smollm2", "gemma3"):
            if real(n) is not None: out[f"{n}, its own embeddings"] = ("own embeddings", real(n), causal(n).embedding_table.detach(), None, 0.0)
    return out


def judged(name, sort, t, rows, cut, gone, n, words):
    "One condition: fit, coverage, swaps."
    base = encoder()
    target = base if cut is None else TextEncoder("minilm", base.model, cut, "cpu")
    table = base.embedding_table.detach().double()
    W = known_map("orthogonal", table.shape[1])
    own = rows is not None and rows.dim() == 2
    E = rows.float() if own else ((spelled_table(t, base) if rows is None else table[rows]) @ W).float()
    source = model_of(t, E, name)
    start = time.process_time()
    a = quiet_fit(source, target, words, forms=("text",))
    rng = random.Random(5)
    texts = [unspaced(x.lower(), gone, rng) for x in TEXTS[:n]]
    goals = TEXTS[7:n] + TEXTS[:7]
    list_, share = word_list(10_000)
    counts = [counts_of(x.tokenizer, list_) for x in (source, target)]
    row = dict(sort=sort, words=words, r2=a.coverage["held_out"]["r2"], unequal=round(float((counts[0] != counts[1]).mean()), 4), unequal_weighted=round(float(share[counts[0] != counts[1]].sum()/share.sum()), 4))
    row |= summary(swaps(source, target, a, texts, goals)) | dict(seconds=round(time.process_time() - start, 1))
    print(f"{name:40s} {row}", flush=True)
    return row


# ---- the same sentence through different source models

SOURCES = ("smollm2", "gemma3")


def meaning(n, queries, tried, keep, rows=()):
    "A sentence's MiniLM vector, written again by each source through its own adapter, with equal numbers of read texts: how near, which words, and how near the two are to each other."
    from fuse_nb import invert
    from fuse_nb.ranking import Fuse
    rows = list(rows)
    for k in range(len(rows), n):
        text, row = TEXTS[k*INVERSIONS//n], dict(by={})
        vector = encoder().encode([text])[0]
        for name in SOURCES:
            start = time.process_time()
            found = invert(vector, encoder(), causal(name), queries=queries, seconds=3600.0, proposer="ranker", ranker=Fuse(tried))
            near = float(encoder().encode([found.text])[0] @ vector)
            row["by"][name] = dict(text=found.text, cosine=round(near, 4), f1=round(100*f1(found.text, text), 1), queries=found.queries, seconds=round(time.process_time() - start, 1))
        both = encoder().encode([r["text"] for r in row["by"].values()])
        rows.append(dict(text=text, **row, between=round(float(both[0] @ both[1]), 4), words_between=round(100*f1(*(r["text"] for r in row["by"].values())), 1)))
        print(rows[-1], flush=True)
        keep(meaning=dict(rows=rows))
    keep(meaning=dict(queries=queries, ranker=f"fuse {tried}", rows=rows, **told(rows)))


def told(rows):
    "Means with intervals, and the floor: how near the found texts of *different* sentences are."
    found = {m: encoder().encode([r["by"][m]["text"] for r in rows]) for m in SOURCES}
    other = (found[SOURCES[0]] @ found[SOURCES[1]].T)[~torch.eye(len(rows), dtype=bool)]
    by = {m: {k: mean_within([r["by"][m][k] for r in rows]) for k in ("cosine", "f1", "seconds")} for m in SOURCES}
    floor = dict(mean=round(other.mean().item(), 4), highest=round(other.max().item(), 4)) if len(rows) > 1 else None
    return dict(by=by, between=mean_within([r["between"] for r in rows]), words_between=mean_within([r["words_between"] for r in rows]), different=floor)


def options(doc, parts, out):
    "What every program in parts is asked."
    p = argparse.ArgumentParser(description=doc)
    p.add_argument("--short", action="store_true"); p.add_argument("--only", default=parts)
    p.add_argument("--out", type=Path, default=ROOT/"data"/out)
    return p


def kept(out, modules, models):
    "What the file holds already, and how a part is added to it: each is written when it is done, by whichever of several programs."
    data = json.loads(out.read_text()) if out.exists() else {}

    def keep(**new):
        if out.exists(): data.update(json.loads(out.read_text()))
        data.update(new)
        data["made"] = made(modules, models)
        write_json(out, data)

    return data, keep


def main():
    a = options(__doc__, "exact,coverage,recovery,validity,meaning", "e4_tokenizers.json").parse_args()
    torch.set_num_threads(1)
    data, keep = kept(a.out, SEARCH + ["residual", "attempt", "proposals", "repairs", "inversion"], "minilm, smollm2-135m, gemma3-270m; tokenizers of gpt2, clip, llama, pegasus")
    parts = a.only.split(",")
    if "exact" in parts and "exact" not in data: keep(exact=exactness(60 if a.short else 400, a.short))
    if "coverage" in parts and "coverage" not in data: keep(coverage=coverages(2000 if a.short else 20_000, a.short))
    if "recovery" in parts and "recovery" not in data: keep(recovery=recovery((200, 800) if a.short else (200, 400, 800, 1600, 6000, 24_000), (0, 1, 2)))
    if "recovery" in parts and "merging" not in data: keep(merging=merging(2500, 3000 if a.short else 20_000))
    if "validity" in parts:
        found = data.get("validity", {})
        for name, condition in conditions(a.short).items():
            if name not in found:
                found[name] = judged(name, *condition, n=8 if a.short else 32, words=3000 if a.short else 12_000)
                keep(validity=found)
    if "meaning" in parts: meaning(2 if a.short else 12, 300 if a.short else 1000, 16, keep, data.get("meaning", {}).get("rows", ()))
    absent = [n for n in REAL if real(n) is None]
    keep(absent=absent)


if __name__ == "__main__": main()
