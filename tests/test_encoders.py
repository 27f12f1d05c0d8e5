"Every setting of a sentence encoder's folder that changes numbers, every problem of a classifier, and pictures at the edge: against computations of their own."
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as t
from PIL import Image
from safetensors.torch import save_file

from fuse_nb.classifiers import Classifier
from fuse_nb.encoders import POOLINGS, TextEncoder, batches_by_length
from fuse_nb.images import ImageTextModel, load_image
from test_models import SENTENCES, byte_bpe, own_cache, word_pieces  # noqa: F401 (fixtures)

SMALL = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=40)
close = lambda a, b, tol=1e-5: torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def folder_of(tmp_path, model, tokenizer, **files):
    torch.manual_seed(0)
    model.save_pretrained(tmp_path/"m"); tokenizer.save_pretrained(tmp_path/"m")
    for name, content in files.items():
        path = tmp_path/"m"/name.replace("__", "/")
        path = path.with_name(path.name + ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path/"m"


def bert(): return t.BertModel(t.BertConfig(**SMALL))
def hidden_of(encoder, text): return encoder.model(input_ids=torch.tensor([encoder.tokenizer(text)["input_ids"]])).last_hidden_state[0].detach()


BY_HAND = {
    "first": lambda h: h[0], "max": lambda h: h.max(0).values, "mean": lambda h: h.mean(0), "mean_sqrt_len": lambda h: h.sum(0)/len(h)**0.5,
    "weightedmean": lambda h: (h*torch.arange(1., len(h) + 1)[:, None]).sum(0)/torch.arange(1., len(h) + 1).sum(), "lasttoken": lambda h: h[-1],
}
OLD = dict(first="cls_token", max="max_tokens", mean="mean_tokens", mean_sqrt_len="mean_sqrt_len_tokens", weightedmean="weightedmean_tokens", lasttoken="lasttoken")


@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize("name", list(POOLINGS))
def test_every_pooling_in_both_forms_of_its_configuration(tmp_path, name, form):
    config = {f"pooling_mode_{v}": k == name for k, v in OLD.items()} if form == "old" else {"embedding_dimension": 32, "pooling_mode": "cls" if name == "first" else name}
    encoder = TextEncoder.from_pretrained(folder_of(tmp_path, bert(), word_pieces(), **{"1_Pooling__config": config}), device="cpu")
    assert encoder.settings.poolings == [name]
    close(encoder.encode(SENTENCES), F.normalize(torch.stack([BY_HAND[name](hidden_of(encoder, s)) for s in SENTENCES]), dim=-1))


def test_several_poolings_are_joined_and_dense_layers_follow(tmp_path):
    modules = [dict(idx=0, name="0", path="", type="sentence_transformers.models.Transformer"), dict(idx=1, name="1", path="1_Pooling", type="sentence_transformers.models.Pooling"),
               dict(idx=2, name="2", path="2_Dense", type="sentence_transformers.models.Dense"), dict(idx=3, name="3", path="3_Normalize", type="sentence_transformers.models.Normalize")]
    dense = dict(in_features=64, out_features=8, bias=True, activation_function="torch.nn.modules.activation.Tanh")
    folder = folder_of(tmp_path, bert(), word_pieces(), modules=modules, **{"1_Pooling__config": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "2_Dense__config": dense})
    W, b = torch.randn(8, 64), torch.randn(8)
    save_file({"linear.weight": W, "linear.bias": b}, folder/"2_Dense"/"model.safetensors")
    encoder = TextEncoder.from_pretrained(folder, device="cpu")
    h = [hidden_of(encoder, s) for s in SENTENCES]
    want = torch.stack([torch.tanh(W @ torch.cat([x[0], x.mean(0)]) + b) for x in h])
    close(encoder.encode(SENTENCES), F.normalize(want, dim=-1))


@pytest.mark.parametrize("files, words", [
    (dict(modules=[dict(type="sentence_transformers.models.CNN", path="1_CNN")]), "module 'CNN'"),
    ({"1_Pooling__config": {"pooling_mode": "median"}}, "'median' is not one of"),
    (dict(sentence_bert_config={"do_lower_case": True}), "lower-cases texts outside its tokenizer"),
    (dict(modules=[dict(type="x.Pooling", path="1_Pooling"), dict(type="x.Dense", path="2_Dense")], **{"2_Dense__config": dict(in_features=32, out_features=8)}), "2_Dense has no model.safetensors"),
])
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, files, words):
    with pytest.raises(ValueError, match=words): TextEncoder.from_pretrained(folder_of(tmp_path, bert(), word_pieces(), **files), device="cpu")


@pytest.mark.parametrize("with_prompt", [True, False])
def test_a_prompt_is_read_before_every_text(tmp_path, with_prompt):
    prompts = {"prompts": {"query": "find the photo "}, "default_prompt_name": "query"}
    files = dict(config_sentence_transformers=prompts, **{"1_Pooling__config": {"pooling_mode": "mean", "include_prompt": with_prompt}})
    encoder = TextEncoder.from_pretrained(folder_of(tmp_path, bert(), word_pieces(), **files), device="cpu")
    skip = 0 if with_prompt else 1 + len(encoder.tokenizer("find the photo ", add_special_tokens=False)["input_ids"])
    want = torch.stack([hidden_of(encoder, "find the photo " + s)[skip:].mean(0) for s in SENTENCES])
    close(encoder.encode(SENTENCES), F.normalize(want, dim=-1))
    loss = encoder.text("a cat")
    assert loss.prefix == "find the photo "
    close(loss.exact([loss.prefix + "a cat"]), torch.zeros(1))


def test_a_decoder_pooled_at_its_last_token(tmp_path):
    model = t.Qwen2Model(t.Qwen2Config(**SMALL, num_key_value_heads=2))
    encoder = TextEncoder.from_pretrained(folder_of(tmp_path, model, byte_bpe(), **{"1_Pooling__config": {"pooling_mode_lasttoken": True}}), device="cpu")
    close(encoder.encode(SENTENCES), F.normalize(torch.stack([hidden_of(encoder, s)[-1] for s in SENTENCES]), dim=-1))


def test_the_encoder_half_of_t5(tmp_path):
    model = t.T5EncoderModel(t.T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))
    encoder = TextEncoder.from_pretrained(folder_of(tmp_path, model, byte_bpe()), device="cpu")
    assert type(encoder.model).__name__ == "T5EncoderModel"
    close(encoder.encode(SENTENCES), F.normalize(torch.stack([hidden_of(encoder, s).mean(0) for s in SENTENCES]), dim=-1))


PROBLEMS = [(1, None), (1, "multi_label_classification"), (3, None), (3, "single_label_classification"), (3, "multi_label_classification")]


@pytest.mark.parametrize("labels, problem", PROBLEMS)
def test_the_problem_decides_the_loss(tmp_path, labels, problem):
    model = t.BertForSequenceClassification(t.BertConfig(**SMALL, num_labels=labels, problem_type=problem))
    c = Classifier.from_pretrained(folder_of(tmp_path, model, word_pieces()), device="cpu")
    z = torch.stack([c.model(input_ids=torch.tensor([c.tokenizer(s)["input_ids"]])).logits[0].detach() for s in SENTENCES]).double()
    i = labels - 1
    one_of_several = labels > 1 and problem != "multi_label_classification"
    want = z.exp().sum(1).log() - z[:, i] if one_of_several else torch.log1p(torch.exp(-z[:, i]))
    loss = c.label(f"LABEL_{i}")
    close(loss.exact(SENTENCES).double(), want)
    ids, mask = c.pad(c.tokenize(SENTENCES))
    close(loss.losses(c.embed(ids), mask).double().detach(), want)


def test_a_regression_has_a_value_and_no_label(tmp_path):
    model = t.BertForSequenceClassification(t.BertConfig(**SMALL, num_labels=1, problem_type="regression"))
    c = Classifier.from_pretrained(folder_of(tmp_path, model, word_pieces()), device="cpu")
    z = c._run(c.logits, SENTENCES, 2)[:, 0]
    close(c.value(2.5).exact(SENTENCES), (z - 2.5)**2)
    with pytest.raises(ValueError, match="is a regression and has no labels"): c.label("LABEL_0")
    with pytest.raises(ValueError, match="index must be a whole number from 0 to 0"): c.value(1.0, index=1)


def test_a_roberta_classifier_takes_as_many_tokens_as_it_has_positions(tmp_path):
    model = t.RobertaForSequenceClassification(t.RobertaConfig(**dict(SMALL, max_position_embeddings=32), pad_token_id=1))
    tokenizer = byte_bpe()
    tokenizer.model_max_length = 512
    c = Classifier.from_pretrained(folder_of(tmp_path, model, tokenizer), device="cpu")
    assert c.max_length == 30
    c.logits(c.embed([[5]*30]))
    with pytest.raises(ValueError, match="31 tokens, the model takes 30"): c.logits(c.embed([[5]*31]))


def test_batches_hold_every_text_once_and_little_padding():
    lengths = [5, 2, 2, 9, 2, 5, 30, 30, 2, 2, 2, 2]
    batches = batches_by_length(lengths, 4)
    assert sorted(i for b in batches for i in b) == list(range(12)) and max(map(len, batches)) <= 4
    assert all(len({lengths[i] for i in b}) == 1 for b in batches)


def test_one_infinite_pixel_leaves_the_others_as_they_were(tmp_path):
    x = np.linspace(0, 0.8, 64, dtype=np.float32).reshape(8, 8)
    for value, seen in ((np.inf, 255), (-np.inf, 0), (np.nan, 0)):
        y = x.copy(); y[3, 3] = value
        Image.fromarray(y).save(tmp_path/"x.tiff")
        got, plain = np.asarray(load_image(tmp_path/"x.tiff"))[..., 0], np.asarray(load_image(Image.fromarray(x)))[..., 0]
        assert got[3, 3] == seen and (np.delete(got, 27) == np.delete(plain, 27)).all()


def test_a_pipe_is_no_photograph(tmp_path):
    import os
    if not hasattr(os, "mkfifo"): pytest.skip("no pipes on this system")
    os.mkfifo(tmp_path/"p.jpg")
    with pytest.raises(ValueError, match="a pipe or a device"): load_image(tmp_path/"p.jpg")


def clip_folder(tmp_path, side):
    tower = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    config = t.CLIPConfig(projection_dim=16, text_config=dict(tower, vocab_size=300, max_position_embeddings=40, eos_token_id=3), vision_config=dict(tower, image_size=32, patch_size=8))
    folder = folder_of(tmp_path, t.CLIPModel(config), byte_bpe())
    t.CLIPImageProcessorPil(size=dict(shortest_edge=side), crop_size=dict(height=side, width=side)).save_pretrained(folder)
    return folder


def test_a_processor_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pictures of 48 x 48 pixels, but its model reads 32 x 32"): ImageTextModel.from_pretrained(clip_folder(tmp_path, 48), device="cpu")


def test_pictures_are_opened_batch_by_batch(tmp_path, monkeypatch):
    import fuse_nb.images as images
    model = ImageTextModel.from_pretrained(clip_folder(tmp_path, 32), device="cpu")
    open_now, most = [], []
    real, see = images.load_image, model._image_features
    monkeypatch.setattr(images, "load_image", lambda x: (open_now.append(x), real(x))[1])
    model._image_features = lambda batch: (most.append(len(open_now)), open_now.clear(), see(batch))[2]
    pictures = [np.full((40, 50, 3), i, dtype=np.uint8) for i in range(10)]
    whole = model.encode_image(pictures, batch_size=4)
    assert most == [4, 4, 2]
    close(whole, torch.cat([model.encode_image(p) for p in pictures]))
