"What a causal model is refused for, what is found out about it when it is loaded, and batches of unequal rows."
import logging

import pytest
import torch

from fuse_nb.causal import CausalLM, Model
from fuse_nb.families import Past
from fuse_nb.store import cache_dir
from fuse_nb.tried import VOCABULARY, tiny_model, toy_words

transformers = pytest.importorskip("transformers")
close = lambda a, b, tol=1e-4: torch.testing.assert_close(a, b, atol=tol, rtol=tol)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch): monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path_factory.mktemp("cache")))


def own_tokenizer(**added):
    "A copy of the toy tokenizer that may be changed."
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=toy_words().backend_tokenizer.__class__.from_str(toy_words().backend_tokenizer.to_str()), pad_token="[PAD]")
    if added: tokenizer.add_special_tokens(added)
    return tokenizer


def load(model, tokenizer=None, **kwargs): return CausalLM("m", model, tokenizer or toy_words(), device="cpu", **kwargs)


# --- refused by name ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra"])
def test_an_encoder_is_no_causal_model(family, tmp_path):
    config = getattr(transformers, f"{family}Config")(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, pad_token_id=0)
    name = {"Bert": "BertLMHeadModel"}.get(family, f"{family}ForCausalLM")
    torch.manual_seed(0)
    getattr(transformers, name)(config).save_pretrained(tmp_path/"m")
    toy_words().save_pretrained(tmp_path/"m")
    with pytest.raises(ValueError, match="no causal model.*is_decoder") as e: CausalLM.from_pretrained(tmp_path/"m", device="cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers(value, where):
    model = tiny_model("llama")
    dict(model.named_parameters())[where].data.view(-1)[3] = value
    with pytest.raises(ValueError, match=f"cannot be used: 1 of its weights {where} are NaN or infinite"): load(model)


def test_both_infinities_do_not_cancel_and_large_weights_are_numbers():
    model = tiny_model("llama")
    weight = model.lm_head.weight.data
    weight[0, 0], weight[1, 1] = float("inf"), float("-inf")
    with pytest.raises(ValueError, match="2 of its weights lm_head.weight"): load(model)
    from fuse_nb.families import _check_weights
    weight[:] = 1e38                                                          # the sum overflows, no weight does
    _check_weights(model)


def test_a_table_shorter_than_the_tokenizer():
    model = tiny_model("gpt2")
    model.resize_token_embeddings(VOCABULARY - 2)
    with pytest.raises(ValueError, match=r"table has 62 rows, but 2 tokens of its tokenizer have ids past them \('t62', 't63'\)"): load(model)
    model.resize_token_embeddings(VOCABULARY + 7)                             # longer is usual: padded to a round number
    assert len(load(model).embedding_table) == VOCABULARY + 7


# --- a pad token outside the table -----------------------------------------------------------------------------------------------------------

def test_pad_id_outside_the_table():
    tokenizer = own_tokenizer(pad_token="<pad-added>")
    assert tokenizer.pad_token_id == VOCABULARY
    lm, plain = load(tiny_model("llama"), tokenizer), load(tiny_model("llama"))
    rows = [[5, 6, 7], [5, 6], [9]]
    assert 0 <= lm.pad_id < VOCABULARY
    close(lm.nll(rows), torch.cat([plain.nll([r]) for r in rows]))
    close(lm.last_logits(rows), torch.cat([plain.last_logits([r]) for r in rows]))
    for bad in ([[5, VOCABULARY]], [[-1]]):
        with pytest.raises(ValueError, match=f"token ids must be from 0 to {VOCABULARY - 1}"): lm.nll(bad)
        with pytest.raises(ValueError, match="token ids must be"): lm.embed(bad)
        with pytest.raises(ValueError, match="token ids must be"): lm.prefill(bad)
    with pytest.raises(TypeError, match="whole numbers"): lm.embed([[0.5]])


def test_a_token_that_every_text_brings_along_must_have_a_row():
    from tokenizers import processors
    tokenizer = own_tokenizer(bos_token="<begin>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", VOCABULARY)])
    assert VOCABULARY in tokenizer("t5")["input_ids"]
    with pytest.raises(ValueError, match="'<begin>'"): load(tiny_model("llama"), tokenizer)


# --- one line on what was found -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family,kept,cacheable", [("llama", "what was read is kept,", True), ("mamba", "token by token", True), ("openai-gpt", "no usable cache", False), ("lfm2", "what was read is kept,", True)])
def test_about(family, kept, cacheable, caplog):
    with caplog.at_level(logging.INFO, logger="fuse_nb"): lm = load(tiny_model(family))
    assert kept in lm.about and lm.cacheable is cacheable and type(lm.model).__name__ in lm.about and "64 tokens in 32 dimensions" in lm.about and "\n" not in lm.about
    assert len(caplog.records) == 1 and type(lm.model).__name__ in caplog.text


def test_what_was_found_out_about_a_large_model_is_kept(monkeypatch):
    import fuse_nb.families as room
    probed, real = [], room._probe
    monkeypatch.setattr(room, "_probe", lambda *a: probed.append(1) or real(*a))
    big = dict(vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**big))
    assert sum(p.numel() for p in model.parameters()) > 2e7
    for _ in range(2): assert load(model).family.cache == "whole"
    assert len(probed) == 1 and len(list((cache_dir()/"families").iterdir())) == 1
    assert load(model.bfloat16()).family.cache == "whole" and len(probed) == 2           # another type is another program
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"): load(model)                             # weights are looked at each time


def test_half_precision_is_judged_by_its_own_rounding():
    for family in ("llama", "lfm2", "gemma3_text", "opt"):
        for dtype in (torch.bfloat16, torch.float16): assert load(tiny_model(family).to(dtype)).family.cache == load(tiny_model(family)).family.cache


# --- batches ----------------------------------------------------------------------------------------------------------------------------------------

ROWS = [[5, 6, 7, 8, 9], [11, 12], [20], [30, 31, 32, 33]]


@pytest.mark.parametrize("family", ["llama", "roberta", "bart", "opt", "lfm2", "mamba"])
def test_last_logits_and_their_gradients(family):
    lm = load(tiny_model(family))
    alone = [lm.embed([r]).clone().requires_grad_() for r in ROWS]
    want = torch.cat([lm.last_logits(x) for x in alone])
    want.logsumexp(-1).sum().backward()
    ids, mask = lm.pad(ROWS)
    for flip in (False, True):
        x, m = (lm.embed(ids).flip(1), mask.flip(1)) if flip else (lm.embed(ids), mask)
        if flip:                                                              # rows in their own order, padded at the left
            x = torch.zeros_like(x)
            for i, r in enumerate(ROWS): x[i, -len(r):] = lm.embed([r])[0]
        x = x.detach().clone().requires_grad_()
        got = lm.last_logits(x, m)
        close(got, want)
        got.logsumexp(-1).sum().backward()
        for i, a in enumerate(alone): close(x.grad[i][m[i].bool()], a.grad[0], 1e-3)
        assert (x.grad[~m.bool()] == 0).all()
    assert got.dtype == torch.float32
    with pytest.raises(ValueError, match="no tokens"): lm.last_logits([[5], []])
    with pytest.raises(ValueError, match="no tokens"): lm.last_logits(lm.embed(ids), torch.zeros_like(mask))
    with pytest.raises(ValueError, match="3 dimensions"): lm.last_logits(lm.embed(ids)[0])


def test_a_mask_with_holes():
    lm = load(tiny_model("gpt2"))
    x = lm.embed([[5, 0, 6, 0, 7]])
    mask = torch.tensor([[1, 0, 1, 0, 1]])
    want = lm.logits(lm.embed([[5, 6, 7]]))
    close(lm.logits(x, mask)[mask.bool()], want[0])
    close(lm.last_logits(x, mask), want[:, -1])


# --- what was read -----------------------------------------------------------------------------------------------------------------------------------

def test_past_is_cut_or_says_that_it_cannot_be():
    lm = load(tiny_model("gpt2"))
    _, past = lm.prefill([[5, 6, 7, 8], [9, 10, 11, 12]])
    assert isinstance(past, Past) and past.first(4) is past and past.first(2).ids.tolist() == [[5, 6], [9, 10]] and past.get_seq_length() == 4
    for bad in (5, -1):
        with pytest.raises(ValueError, match="n must be from 0 to 4"): past.first(bad)
    for family in ("lfm2", "mamba"):
        _, past = load(tiny_model(family)).prefill([[5, 6, 7, 8]])
        with pytest.raises(ValueError, match="cannot be cut"): past.first(2)
    _, past = load(tiny_model("openai-gpt")).prefill([[5, 6, 7, 8]])
    assert past.cache is None and past.first(2).ids.tolist() == [[5, 6]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "bart", "openai-gpt"])
def test_a_memory_of_nothing_is_read_on_from(family):
    lm = load(tiny_model(family))
    nothing = lm.prefill([[5, 6, 7]])[1].first(0)
    for _ in range(2): close(lm.extend(nothing, [0, 0], [[8, 9], [10, 11]])[0], lm.last_logits([[8, 9], [10, 11]]))


def test_things_worked_out_about_a_model_have_a_home():
    lm, made = load(tiny_model("gpt2")), []
    for _ in range(3): assert lm.remember(("strings", 1), lambda: made.append(1) or "x") == "x"
    assert made == [1] and isinstance(lm, Model)


def test_identity_tells_weights_apart():
    a, b, c = (load(tiny_model("gpt2", seed)) for seed in (0, 0, 1))
    assert a.identity == b.identity != c.identity
    other = tiny_model("gpt2")
    other.transformer.h[1].mlp.c_fc.weight.data += 0.01                       # the table is the same
    d = load(other)
    assert d.fingerprint == a.fingerprint and d.identity != a.identity
