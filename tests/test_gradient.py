"The bridge at its door. What it computes: `test_search.py`."
import numpy as np
import pytest
import torch

from fuse_nb import bridge
from fuse_nb.gradient import pull, route
from test_search import adapter_of, bert, own_cache, source_of  # noqa: F401 (a fixture)
from test_models import word_pieces

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    lm, encoder = source_of("gpt2"), bert("pieces", word_pieces())
    adapter = adapter_of(lm, encoder, {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
    ids = lm.tokenize(["a photo of a cat", "two dogs"])
    return adapter, lm.embed(lm.pad(ids)[0]).detach(), ids


def spoilt(x, value):
    x = x.clone(); x[0, 1, 2] = value
    return x


EMBEDS = {"numpy": lambda x: x.numpy(), "a list": lambda x: x.tolist(), "None": lambda x: None, "integers": lambda x: x.long(), "complex": lambda x: x.to(torch.complex64), "narrow": lambda x: x[..., :-1], "wide": lambda x: torch.cat([x, x], -1),
          "NaN": lambda x: spoilt(x, float("nan")), "infinite": lambda x: spoilt(x, float("-inf")), "one row": lambda x: x[0], "a vector": lambda x: x[0, 0], "four dimensions": lambda x: x[None], "other rows": lambda x: x[:1], "short": lambda x: x[:, :2], "long": lambda x: torch.cat([x, x], 1)}


@pytest.mark.parametrize("case", EMBEDS)
def test_embeddings_that_do_not_serve_are_named(case, made):
    adapter, embeds, ids = made
    assert bridge(adapter, embeds, ids)[0].shape[0] == 2
    with pytest.raises((TypeError, ValueError), match="source_embeds|source_ids"): bridge(adapter, EMBEDS[case](embeds), ids)


IDS = {"None": None, "a number": 5, "a text": "a photo", "texts": ["a photo", "two"], "no rows": [], "an empty row": [[1, 2], []], "fractions": [[0.5, 1.0], [2.0]], "negative": [[-1, 2], [3]], "beyond": [[10**9, 2], [3]], "None inside": [[None, 1], [2]], "deeper": [[[1]], [[2]]], "truth values": [[True, False], [True]]}


@pytest.mark.parametrize("case", IDS)
def test_tokens_that_do_not_serve_are_named(case, made):
    adapter, embeds, _ = made
    with pytest.raises((TypeError, ValueError), match="ids|id "): bridge(adapter, embeds[:, :2], IDS[case])
    with pytest.raises((TypeError, ValueError), match="ids|id "): route(adapter, IDS[case])


@pytest.mark.parametrize("name", ["prefix", "suffix"])
@pytest.mark.parametrize("value", [None, 3, ["a"], "half \ud800"])
def test_a_template_is_text(name, value, made):
    adapter, embeds, ids = made
    with pytest.raises((TypeError, ValueError), match=name): bridge(adapter, embeds, ids, **{name: value})
    with pytest.raises((TypeError, ValueError), match=name): route(adapter, ids, **{name: value})


def test_an_adapter_without_models_is_refused(made):
    from fuse_nb import FuseAdapter
    adapter, embeds, ids = made
    with pytest.raises(ValueError, match="check"): bridge(FuseAdapter(adapter.tensors), embeds, ids)
    for bad in (None, 3, "adapter"):
        with pytest.raises((TypeError, ValueError), match="adapter"): bridge(bad, embeds, ids)


@pytest.mark.parametrize("change", [lambda g: g.numpy(), lambda g: g.long(), lambda g: g[..., :-1], lambda g: g[:1], lambda g: g[:, :-1], lambda g: g[0], lambda g: None])
def test_a_target_gradient_that_does_not_fit_is_named(change, made):
    adapter, _, ids = made
    path = route(adapter, ids)
    g = torch.randn(2, path.target_width, 32)
    assert pull(adapter, path, g).shape == (2, path.source_width, 32)
    with pytest.raises((TypeError, ValueError), match="target_grad"): pull(adapter, path, change(g))


def test_embeddings_of_ids_as_tensor_or_array_are_the_same(made):
    adapter, embeds, ids = made
    one = bridge(adapter, embeds[0, :len(ids[0])], ids[0])[0]
    for same in (torch.tensor(ids[0]), np.array(ids[0]), tuple(ids[0])): assert torch.equal(one, bridge(adapter, embeds[0, :len(ids[0])], same)[0])


def test_a_causal_target_reads_no_end_token_that_its_tokenizer_would_add(made):
    "No loss reads one either, so the gradient would be of another text."
    from fuse_nb import CausalLM
    from test_models import byte_bpe, causal
    lm = made[0].source
    ending = CausalLM("ending", causal("llama"), byte_bpe("<bos> $A <eos>"), "cpu")
    assert ending.tokenizer("a")["input_ids"][-1] == 3 and ending.closing == 1 and lm.closing == 0
    adapter = adapter_of(lm, ending, {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
    texts = ["a photo of a cat", "two dogs"]
    assert route(adapter, lm.tokenize(texts)).target_ids == ending.tokenize(texts)
    assert route(adapter, lm.tokenize(texts), "so ", " it is").target_ids == ending.tokenize([f"so {t} it is" for t in texts])
    embeds, mask = bridge(adapter, lm.embed(lm.pad(lm.tokenize(texts))[0]), lm.tokenize(texts))
    assert mask.sum(1).tolist() == [len(ids) for ids in ending.tokenize(texts)]
