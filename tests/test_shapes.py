"""Llama-3-8B with SigLIP-so400m's text side on shapes alone: weights, fit, adapter, tables and a search step have room on one card of 80 GB.

The modules, their memory of the beam and what autograd keeps are transformers' own, run on torch's meta device; the sums and the words are fuse_nb's own code there. Assumed, not
measured: that all of it is held at once, four copies of a Gram matrix while it is solved, two spectra of a chunk, and as many rows a batch as ROWS. No search of fuse_nb is run here.
"""
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SiglipTextConfig, SiglipTextModel
from transformers.cache_utils import DynamicCache

from fuse_nb.adapter import tubes
from fuse_nb.gram import GramAccumulator

CARD, LONGEST, BEAM, ROWS, LENGTH = 80e9, 4, 8, 512, 64              # bytes; max_tokens of a fit; rows kept, rows scored at once and tokens a row of a search
V, D, E = 128256, 4096, 1152


def bytes_of(tensors):
    "Each piece of memory once."
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def saved_by(run, *known):
    "Bytes that autograd keeps of a forward pass, weights apart."
    kept, apart = [], {p.untyped_storage()._cdata for model in known for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t): run()
    return bytes_of(t for t in kept if t.untyped_storage()._cdata not in apart)


@pytest.fixture(scope="module")
def models():
    llama = LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    siglip = SiglipTextConfig(vocab_size=32000, hidden_size=E, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, bos_token_id=1, eos_token_id=2)
    with torch.device("meta"): return [m.bfloat16().eval() for m in (LlamaForCausalLM(llama), SiglipTextModel(siglip))]


def sizes(models, dtype=torch.bfloat16):
    lm, target = (m.to(dtype) for m in models)
    size = {"language model": bytes_of(lm.parameters()), "target": bytes_of(target.parameters())}
    accs = [GramAccumulator(D, E, l, device="meta") for l in range(1, LONGEST + 1)]                # double precision, all lengths at once
    size["fit: sums"] = bytes_of(t for a in accs for t in a.sums.values())
    words = tubes(lm.get_input_embeddings().weight, torch.zeros(4096, LONGEST, dtype=torch.long, device="meta"), LONGEST)
    size["fit: a chunk of 4096 words, both sides, their spectra"] = 2 * (words.nbytes + words.nbytes * E // D) * 2
    size["fit: solving the longest length, four copies"] = 4 * accs[-1].sums["gram"].nbytes
    size["adapter, float32"] = sum(4 * D * E * a.l for a in accs)
    size["tables, three in float32"] = 3 * 4 * V * E
    past = DynamicCache()
    with torch.no_grad(): out = lm(input_ids=torch.zeros(BEAM, LENGTH, dtype=torch.long, device="meta"), past_key_values=past, use_cache=True, logits_to_keep=1)
    assert out.logits.shape == (BEAM, 1, V)
    a_row = bytes_of(x for layer in past.layers for x in (layer.keys, layer.values)) // BEAM
    size["memory of the beam and of the rows scored"] = a_row * (BEAM + ROWS)
    size["logits in float32, and their softmax, of the rows scored"] = 2 * 4 * ROWS * V
    hidden = torch.zeros(ROWS, LENGTH, E, dtype=dtype, device="meta", requires_grad=True)
    size["target: a gradient over the rows scored"] = saved_by(lambda: target.encoder(inputs_embeds=hidden), target)
    embeds = torch.zeros(BEAM, LENGTH, D, dtype=dtype, device="meta", requires_grad=True)
    size["language model: a gradient over the beam"] = saved_by(lambda: lm(inputs_embeds=embeds), lm)
    return size


def test_the_pair_has_the_published_size(models):
    count = [sum(p.numel() for p in m.parameters()) for m in models]
    assert count[0] == 8_030_261_248 and count[1] == pytest.approx(0.45e9, rel=0.02)


def test_llama_and_siglip_fit_one_card(models):
    size = sizes(models)
    print(*(f"{v / 1e9:7.2f} GB  {k}" for k, v in size.items()), f"{sum(size.values()) / 1e9:7.2f} GB  together", sep="\n")
    kv = 2 * 2 * 32 * 8 * 128 * LENGTH * (BEAM + ROWS)                # by hand: keys and values, two bytes, layers, heads, width
    assert size["memory of the beam and of the rows scored"] == kv
    assert size["fit: sums"] == pytest.approx(10 * 8 * D * (D + E), rel=1e-3)
    assert sum(size.values()) < CARD
    assert sum(sizes(models, torch.float32).values()) > CARD          # the sum can be too large: in single precision it is
