"What one model can be asked: read once, by families that count positions in their own way, behind templates of any tokenizer; on tiny models of random weights."
# ruff: noqa: F811 (fixtures)
import os
import pathlib

import pytest
import torch
import torch.nn.functional as F

from fuse_nb.causal import CausalLM
from fuse_nb.losses import Fluency, NextTokens, Penalty, TargetText, ZeroShotLabel, banned, last_logits, length
from fuse_nb.objective import Objective, Term, gradient
from test_models import SIZES, byte_bpe
from test_search import close, full_logits, made, own_cache  # noqa: F401 (fixtures)

transformers = pytest.importorskip("transformers")
TOKENIZERS = pathlib.Path(os.environ.get("FUSE_SHARED", "/work/shared"))/"tokenizers"


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma"])
def test_fluency_of_embeddings_reads_the_model_once(made, family):
    lm, passes = made[family], []
    hook = lm.model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        losses, grad = gradient(Objective(Term(lm)), lm.tokenize(["a photo of a cat"]), 3)
    finally:
        hook.remove()
    assert len(passes) == 1 and grad.norm() > 0
    close(losses, Fluency(lm).exact_ids(lm.tokenize(["a photo of a cat"]), 3), 1e-4)
    assert not [h for h in lm.model.get_output_embeddings()._forward_pre_hooks]  # nothing stays behind


def test_a_model_that_fails_leaves_no_hook_behind(made):
    lm = made["gpt2"]
    with pytest.raises(ValueError, match="64 at most"): Fluency(lm).embed_losses(lm.embed([[5]*65]))
    assert not lm.model.get_output_embeddings()._forward_pre_hooks


def decoders():
    t = transformers
    small = dict(vocab_size=SIZES["vocab_size"], hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    yield "roberta", lambda: t.RobertaForCausalLM(t.RobertaConfig(**small, is_decoder=True, pad_token_id=1))
    yield "bart", lambda: t.BartForCausalLM(t.BartConfig(vocab_size=SIZES["vocab_size"], d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=48, max_position_embeddings=64))
    yield "gpt2", lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=SIZES["vocab_size"], n_embd=32, n_layer=2, n_head=2, n_positions=64))


@pytest.mark.parametrize("name, make", list(decoders()), ids=lambda x: x if isinstance(x, str) else "")
def test_rows_of_several_lengths_need_no_positions(name, make):
    "Padding moved to the front is read at wrong positions by families that count them in their own way."
    torch.manual_seed(0)
    model = make()
    for p in model.parameters(): p.data.mul_(4 if p.ndim > 1 else 1)
    lm = CausalLM(name, model, byte_bpe(), "cpu")
    rows = [[40, 41], [40, 41, 42, 43], [50], [44, 45]]
    ids, mask = lm.pad(rows)
    got = last_logits(lm, lm.embed(ids), mask)
    want = torch.stack([lm.model(input_ids=torch.tensor([r])).logits[0, -1] for r in rows])
    close(got, want, 1e-4)
    x = lm.embed(ids).clone().requires_grad_()
    grad, = torch.autograd.grad(last_logits(lm, x, mask).square().sum(), x)
    assert (grad.norm(dim=-1)[mask.bool()] > 0).all() and (grad[~mask.bool()] == 0).all()


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="needs Llama's tokenizer")
def test_an_answer_is_the_token_that_stands_behind_the_template():
    "Alone, Llama spells ' positive' and ' negative' with the same first token."
    k = transformers.AutoTokenizer.from_pretrained(TOKENIZERS/"llama")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**dict(SIZES, vocab_size=len(k), num_key_value_heads=2)))
    lm = CausalLM("llama", model, k, "cpu")
    loss = ZeroShotLabel(lm, "positive")
    for word, i in zip(("positive", "negative"), loss.ids):
        whole = k(loss.suffix + " " + word, add_special_tokens=False)["input_ids"]
        assert i in whole and k.convert_ids_to_tokens(i).strip("\u2581").startswith(word[:3])
    odds = lambda t: full_logits(lm, lm.tokenize([loss.prefix + t + loss.suffix])[0])[-1][loss.ids[0]] - full_logits(lm, lm.tokenize([loss.prefix + t + loss.suffix])[0])[-1][loss.ids[1]]
    close(Term(loss).exact(["a dog"])[0], F.softplus(-(odds("a dog") - odds("a photo"))), 1e-4)


def test_values_do_not_depend_on_what_was_read_before(made):
    lm = made["gpt2"]
    rows = lm.tokenize(["a cat on a mat", "a cat on a cup", "two people"])
    for loss in (TargetText(lm, " ran after"),):
        first = loss.exact_ids(rows)
        loss.exact_ids(lm.tokenize(["a cat on the ball", "a dog"]))
        close(loss.exact_ids(rows), first), close(loss.exact_ids(rows[:1]), first[:1])
    for loss in (NextTokens(lm, "the dog"), ZeroShotLabel(lm, "good", ("good", "bad"))):
        texts = ["a cat on a mat", "a cat on a cup", "two people"]
        first = loss.exact(texts)
        loss.exact(["a cat on the ball", "a dog"])
        close(loss.exact(texts), first), close(loss.exact(texts[2:]), first[2:])


def test_what_is_refused_and_how(made):
    lm = made["gpt2"]
    for call, said in (
        (lambda: TargetText(lm, None), "text must be a text, got None"), (lambda: TargetText(lm, "\ud800"), "no UTF-8"),
        (lambda: NextTokens(lm, " "), "reference is empty"), (lambda: ZeroShotLabel(lm, "happy"), "label must be one of positive, negative, got 'happy'"),
        (lambda: ZeroShotLabel(lm, "good", ("good", "good")), "begin with the same token"), (lambda: length(0), "words must be a whole number"),
        (lambda: length(2.5), "words must be a whole number"), (lambda: banned(), "at least one word"), (lambda: banned(3), "words must be a text")):
        with pytest.raises((TypeError, ValueError), match=said): call()


def test_penalties_of_one_name_are_told_apart():
    assert length(3).identity() != length(4).identity() == length(4).identity()
    assert banned("a", "b").identity() == banned("B", "a").identity() != banned("a").identity()
    assert Penalty("mine", len).identity() != Penalty("yours", len).identity()
