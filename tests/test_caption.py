"The main job, end to end, with the packaged models: a real photograph, a caption, the command's manners."
import json, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FUSE = str(Path(sys.executable).parent/"fuse-nb")
PHOTO = Path(__import__("skimage.data").data.__file__).parent/"chelsea.png"
QUICK = ["--steps", "3", "--beam", "1", "--candidates", "4", "--device", "cpu"]


def fuse(*args): return subprocess.run([FUSE, *map(str, args)], capture_output=True, text=True)


def test_caption_command_prints_the_caption_alone_on_stdout(tmp_path):
    a = fuse("caption", PHOTO, "--device", "cpu", "--figure", tmp_path/"out.png")
    assert a.returncode == 0, a.stderr
    assert a.stdout.startswith("An image of") and a.stdout.count("\n") == 1
    assert any(w in a.stdout.lower() for w in ("cat", "tabby", "kitten"))
    assert "objective" in a.stderr and "fluency" in a.stderr and "image" in a.stderr
    assert Image.open(tmp_path/"out.png").size[0] > 400


def test_same_seed_same_caption():
    a, b = (json.loads(fuse("caption", PHOTO, "--json", "--seed", 3, "--steps", 8, "--beam", 2, "--candidates", 8, "--device", "cpu").stdout) for _ in range(2))
    assert a["ids"] == b["ids"] and a["loss"] == pytest.approx(b["loss"], abs=1e-5)


@pytest.mark.parametrize("args", [
    ["missing.jpg"], [__file__], [PHOTO, "--lm", "no-such-model"], [PHOTO, "--image-model", "no-such-model"], [PHOTO, "--prefix", ""], [PHOTO, "--beam", "0"],
    [PHOTO, "--candidates", "-1"], [PHOTO, "--steps", "0"], [PHOTO, "--device", "cuda:7"], [PHOTO, "--ranker", "best"], [PHOTO, "--method", "best"], [PHOTO, "--figure", "out.xyz"]],
    ids=lambda a: " ".join(map(str, a[1:])) or Path(a[0]).name)
def test_bad_input_is_one_line_and_exit_code_2(args):
    r = fuse("caption", *args)
    assert r.returncode == 2, r.stderr
    said = [line for line in r.stderr.splitlines() if line.startswith("fuse-nb caption:")]
    assert len(said) == 1 and "Traceback" not in r.stderr and r.stdout == ""


def test_odd_pictures_are_captioned(tmp_path):
    from fuse_nb.captioning import Captioner
    captioner = Captioner.from_pretrained(device="cpu", steps=2, beam=1, candidates=4, progress=False, end=None)
    picture = Image.open(PHOTO).convert("RGB").resize((64, 48))
    odd = {"one": picture.resize((1, 1)), "cmyk": picture.convert("CMYK"), "alpha": picture.convert("RGBA"), "gray16": Image.fromarray((np.asarray(picture.convert("L")).astype(np.uint16)*256))}
    for name, p in odd.items():
        path = tmp_path/f"{name}.{'jpg' if name == 'cmyk' else 'png'}"
        p.save(path)
        assert captioner(path).text.startswith("An image of")


def test_damaged_adapter_cache_is_told_and_fitted_again(tmp_path, monkeypatch, caplog):
    from fuse_nb.fitting import FuseAdapter
    from fuse_nb.causal import CausalLM
    from fuse_nb.encoders import TextEncoder
    monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path))
    lm, encoder = _tiny(tmp_path)
    words = [a + b for a in "abcdefghij" for b in "klmnopqrst"]*3
    first = FuseAdapter.cached(lm, encoder, words=words, max_tokens=1)
    file, = tmp_path.rglob("adapter.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    again = FuseAdapter.cached(lm, encoder, words=words, max_tokens=1)
    assert "damaged" in caplog.text
    assert all(np.allclose(first.tensors[l], again.tensors[l]) for l in first.tensors)


def _tiny(folder):
    "A random GPT-2 and a random BERT with a byte-level and a word-piece tokenizer, as saved folders."
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, decoders, trainers
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from fuse_nb.causal import CausalLM
    from fuse_nb.encoders import TextEncoder
    torch.manual_seed(0)
    bpe = Tokenizer(models.BPE()); bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(["ak bl cm dn eo"], trainers.BpeTrainer(vocab_size=300, special_tokens=["<e>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<e>", pad_token="<e>", model_max_length=64).save_pretrained(folder/"lm")
    GPT2LMHeadModel(GPT2Config(vocab_size=len(bpe.get_vocab()), n_embd=8, n_layer=1, n_head=2, n_positions=64)).save_pretrained(folder/"lm")
    wp = Tokenizer(models.WordPiece(unk_token="[UNK]")); wp.pre_tokenizer = pre_tokenizers.Whitespace(); wp.decoder = decoders.WordPiece()
    wp.train_from_iterator(["ak bl cm dn eo fp gq hr is jt"]*3 + list("abcdefghijklmnopqrst"), trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    wp.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=wp, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64).save_pretrained(folder/"encoder")
    BertModel(BertConfig(vocab_size=len(wp.get_vocab()), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=64)).save_pretrained(folder/"encoder")
    return CausalLM.from_pretrained(str(folder/"lm"), device="cpu"), TextEncoder.from_pretrained(str(folder/"encoder"), device="cpu")
