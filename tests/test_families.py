"""Every causal family that transformers can build here, tiny and of random weights, against full forward passes of one row without cache and without padding.
A family is right, or refused when it is loaded; never wrong."""
import random

import pytest
import torch

from fuse_nb.causal import CausalLM
from fuse_nb.tried import VOCABULARY, families, tiny_model, toy_words

pytest.importorskip("transformers")

# Families that no configuration from sizes alone builds here, or only one with over 20 million weights. All are models of pictures or sound around a language model that is tried by its own name,
# but for those with a reason.
UNTRIED = {
    "blt": "96 million weights (a table of hashed bytes)", "cohere_compass_text": "its configuration misses a rotation for full attention", "dbrx": "its configuration fails in this release",
    "dots3_note": "wants all heads equal", "dots3_note_text": "wants all heads equal", "fuyu": "", "gemma3": "", "gemma3n": "wants timm",
    "gemma4_assistant": "", "gemma4_unified": "", "gemma4_unified_assistant": "", "got_ocr2": "", "moss_transcribe_diarize": "",
    "musicgen": "reads sound, four rows of codes", "musicgen_melody": "reads sound, four rows of codes", "qwen4_exp_text": "tried as qwen4_exp", "zamba": "its tied layers want more of them",
}
# Why these are refused, each checked below without our code.
REFUSED = {"cpmant": "takes no embeddings", "deepseek_v4": "takes no embeddings", "gemma3n_text": "a table for each layer", "gemma4": "a table for each layer", "gemma4_text": "a table for each layer",
           "prophetnet": "depends on what follows", "xlnet": "depends on what follows"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch): monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path_factory.mktemp("cache")))


def rows_of(lengths, seed=0):
    dice = random.Random(seed)
    return [[dice.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths]


@torch.no_grad()
def alone(model, row):
    "The definition: logits of one row, nothing kept, nothing padded."
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0]


def wrong(got, want, scale):
    "Whether two tensors differ by more than rounding; what stands before a token moves logits by far more (below)."
    return got.shape != want.shape or not (got - want).abs().max() <= 1e-4 * scale


@torch.no_grad()
def faults(lm, length=7):
    "The names of what is wrong with this model."
    rows = rows_of([length, 3, length, 4, 1, 5])
    full = [alone(lm.model, r) for r in rows]
    scale, n, found = max(f.abs().max() for f in full), max(map(len, rows)), []

    def check(name, pairs):
        if any(wrong(a, b, scale) for a, b in pairs): found.append(name)
    right, mask = lm.pad(rows)
    left = torch.tensor([[0] * (n - len(r)) + r for r in rows])
    left_mask = mask.flip(1)
    check("padded at the right", [(x[:len(r)], f) for x, r, f in zip(lm.logits(lm.embed(right), mask), rows, full)])
    check("padded at the left", [(x[n - len(r):], f) for x, r, f in zip(lm.logits(lm.embed(left), left_mask), rows, full)])
    check("last logits of rows", [(lm.last_logits(rows), torch.stack([f[-1] for f in full]))])
    check("last logits, padded at the left", [(lm.last_logits(lm.embed(left), left_mask), torch.stack([f[-1] for f in full]))])
    nll = [-sum(f.log_softmax(-1)[t - 1, r[t]] for t in range(1, len(r))) for f, r in zip(full, rows)]
    check("likelihood", [(lm.nll(rows), torch.stack([torch.as_tensor(x, dtype=torch.float32) for x in nll]))])
    prompts = [rows[0][:4], rows[2][:4]]
    last, past = lm.prefill(prompts)
    check("prefill", [(last, torch.stack([alone(lm.model, p)[-1] for p in prompts]))])
    chosen, new = [1, 0, 1], rows_of([3, 3, 3], 1)
    grown = [prompts[c] + x for c, x in zip(chosen, new)]
    want = torch.stack([alone(lm.model, g) for g in grown])
    once, longer = lm.extend(past, chosen, new, every=True)
    check("extended", [(once, want[:, -3:])])
    check("extended again from the same cache", [(lm.extend(past, chosen, new, every=True)[0], want[:, -3:]), (lm.extend(past, chosen, new, keep=2)[0], want[:, -2:])])
    more = [g + x for g, x in zip(grown, rows_of([1, 1, 1], 2))]
    check("extended twice", [(lm.extend(longer, [2, 1, 0], [m[-1] for m in more[::-1]])[0], torch.stack([alone(lm.model, m)[-1] for m in more[::-1]]))])
    check("after all that", [(lm.extend(past, chosen, new)[0], want[:, -1])])
    try: short = longer.first(2)
    except ValueError: short = None                                           # told, so the caller reads again
    if short is not None:
        check("cut and extended", [(lm.extend(short, [0, 2], [[9, 10], [11, 12]])[0], torch.stack([alone(lm.model, grown[0][:2] + [9, 10])[-1], alone(lm.model, grown[2][:2] + [11, 12])[-1]]))])
        check("the longer one after the cut", [(lm.extend(longer, [0], [more[0][-1]])[0], alone(lm.model, more[0])[-1:])])
    return found


def moved_by_what_stands_before(model, scale):
    "How far another first token moves the last logits, in units of what counts as wrong."
    a, b = rows_of([7, 7])
    return (alone(model, a)[-1] - alone(model, b[:1] + a[1:])[-1]).abs().max() / (1e-4 * scale)


@pytest.mark.parametrize("family", families())
def test_a_family_is_right_or_refused(family):
    if family in UNTRIED:
        with pytest.raises(ValueError): tiny_model(family)                    # a list that outlives its reason fails
        pytest.skip(UNTRIED[family] or "a model of pictures or sound around a language model")
    model = tiny_model(family)
    if family in REFUSED:
        with pytest.raises(ValueError, match="cannot be used") as e: CausalLM(family, model, toy_words(), device="cpu")
        assert "\n" not in str(e.value) and refused_rightly(family, model)
        return
    lm = CausalLM(family, model, toy_words(), device="cpu")
    assert faults(lm) == []
    assert lm.cacheable == (lm.family.cache != "none") and type(model).__name__ in lm.about


@torch.no_grad()
def refused_rightly(family, model):
    a, b = rows_of([7, 7])
    if REFUSED[family] == "takes no embeddings":
        table = model.get_input_embeddings()
        with pytest.raises(Exception): model(inputs_embeds=table(torch.tensor([a])))
        return True
    if REFUSED[family] == "a table for each layer":
        between = (model.get_input_embeddings()(torch.tensor([a])) + model.get_input_embeddings()(torch.tensor([b]))) / 2
        try: return not torch.allclose(model(inputs_embeds=model.get_input_embeddings()(torch.tensor([a])), use_cache=False).logits[0], alone(model, a), atol=1e-2) or model(inputs_embeds=between) is None
        except RuntimeError as e: return "reverse the embedding" in str(e)
    return (alone(model, a)[:4] - alone(model, a[:4])).abs().max() > 1e-2 * alone(model, a).abs().max()


@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta", "bart", "opt", "lfm2", "qwen3_next", "falcon_h1", "granitemoehybrid", "jamba", "mamba", "openai-gpt", "gemma2", "bloom", "mpt"])
def test_the_check_could_tell(family):
    "What stands before a token moves these logits by far more than the tolerance: a wrong position or a spoiled cache would show."
    model = tiny_model(family)
    assert moved_by_what_stands_before(model, alone(model, rows_of([7])[0]).abs().max()) > 20


@pytest.mark.parametrize("family", ["roberta", "camembert", "opt", "bart", "gpt2", "llama", "xglm", "biogpt"])
def test_the_longest_text_is_read_and_one_longer_is_refused(family):
    lm = CausalLM(family, tiny_model(family), toy_words(), device="cpu")
    (row,) = rows_of([lm.max_length])
    assert lm.max_length in (63, 64) and torch.isfinite(lm.nll([row])).all() and not wrong(lm.last_logits([row])[0], alone(lm.model, row)[-1], 100)
    with pytest.raises(ValueError, match=f"takes {lm.max_length} at most"): lm.nll([row + [5]])


# --- the caches of transformers, one class of layer after another ------------------------------------------------------------------------------

def layer_classes():
    import transformers.cache_utils as c
    found = {n: k for n, k in vars(c).items() if isinstance(k, type) and issubclass(k, (c.CacheLayerMixin, c.LinearAttentionCacheLayerMixin))}
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as d
    return found | {n: k for n, k in vars(d).items() if isinstance(k, type) and issubclass(k, c.CacheLayerMixin) and k.__module__ == d.__name__}


def abstract_or_elsewhere(k): return bool(getattr(k, "__abstractmethods__", None)) or "Quant" in k.__name__ or "Fp8" in k.__name__ or k.__module__.endswith("deepseek_v4")


def build(k):
    from transformers.cache_utils import StaticLayer
    kwargs = {}
    if issubclass(k, StaticLayer): kwargs["max_cache_len"] = 8
    if "Sliding" in k.__name__: kwargs["sliding_window"] = 4
    return k(**kwargs)


def feed(layer, n, seed):
    "Read n positions: whichever states this kind of layer keeps."
    g = torch.Generator().manual_seed(seed)
    out = []
    if hasattr(layer, "update"): out += list(layer.update(torch.randn(2, 3, n, 4, generator=g), torch.randn(2, 3, n, 4, generator=g)))
    if hasattr(layer, "update_indexer"): out.append(layer.update_indexer(torch.randn(2, n, 4, generator=g)))
    if hasattr(layer, "update_conv_state"): out.append(layer.update_conv_state(torch.randn(2, 6, 3, generator=g)))
    if hasattr(layer, "update_recurrent_state"): out.append(layer.update_recurrent_state(torch.randn(2, 6, 5, generator=g)))
    return [x.clone() for x in out]


def state(x):
    "Every number in a layer, its settings included."
    if isinstance(x, torch.Tensor): return x.clone()
    if isinstance(x, dict): return {k: state(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [state(v) for v in x]
    return {k: state(v) for k, v in vars(x).items()} if hasattr(x, "__dict__") and not isinstance(x, type) else x


def same(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    return a == b or a is b


@pytest.mark.parametrize("name", sorted(n for n, k in layer_classes().items() if not abstract_or_elsewhere(k)))
def test_a_copied_cache_of_any_class_is_used_without_changing_the_first(name):
    from transformers.cache_utils import Cache
    from fuse_nb.families import copy_cache
    cache = Cache(layers=[build(layer_classes()[name])])
    feed(cache.layers[0], 3, 0)
    before = state(cache)
    once = feed(copy_cache(cache).layers[0], 2, 1)
    assert same(state(cache), before)
    again = feed(copy_cache(cache).layers[0], 2, 1)
    assert same(once, again) and same(state(cache), before)
    rows = copy_cache(cache)
    rows.reorder_cache(torch.tensor([1, 0]))
    feed(rows.layers[0], 2, 2)
    assert same(state(cache), before)


def test_the_classes_that_are_not_tried_are_known():
    "A new class of transformers that needs more than shapes shows here."
    assert {n for n, k in layer_classes().items() if abstract_or_elsewhere(k)} == {
        "CacheLayerMixin", "LinearAttentionCacheLayerMixin", "BaseQuantizedLayer", "QuantizedLayer", "QuantoQuantizedLayer", "HQQQuantizedLayer", "Fp8QuantizedLayer",
        "DeepseekV4HCACache", "DeepseekV4CSACache"}
