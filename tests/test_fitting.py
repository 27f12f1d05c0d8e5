"The fit at its door: what it is given, and devices without float64. What it computes: `test_adapter.py`."
import numpy as np
import pytest
import torch

from fuse_nb import FuseAdapter
from pretend import DEVICE, Machine
from test_adapter import fit, own_cache, some_words, source, target  # noqa: F401 (a fixture)
from fuse_nb.tproduct import tprod, ttranspose


# ---------------------------------------------------------------- what it is given

BAD = [("words", "cat"), ("words", b"cat"), ("words", True), ("words", 2.5), ("words", 0), ("words", -3), ("words", 10**30), ("words", ["ok", None]), ("words", ["half a \ud800".split()[-1]]),
       ("max_tokens", 10**9), ("max_tokens", "4"), ("max_tokens", None), ("ridge", None), ("ridge", True), ("ridge", {"1": 0.5}), ("ridge", {1: "best"}), ("ridge", {1: None}), ("ridge", []),
       ("seed", "a"), ("seed", None), ("seed", 1.5), ("seed", -1), ("seed", 2**40), ("center", "no"), ("center", None), ("weighting", None), ("weighting", "1"), ("holdout", None), ("holdout", "0.1"),
       ("holdout", float("nan")), ("chunk", None), ("chunk", True), ("chunk", "a"), ("classes", None), ("classes", 1), ("forms", None), ("forms", "text"), ("forms", (1,)), ("forms", ("text", "text")), ("frequencies", "abc"), ("frequencies", [[1.0]*400])]


@pytest.mark.parametrize("name,value", BAD, ids=[f"{n}={str(v)[:20]!r}" for n, v in BAD])
def test_a_bad_option_is_named_by_fit_and_by_the_cache(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"^{name}"): fit(**{name: value})
    with pytest.raises(ValueError, match=f"^{name}"): FuseAdapter.cached(source(), target(), **dict(dict(words=some_words(50)), **{name: value}))
    assert not list((tmp_path/"cache").rglob("adapter.safetensors"))


def test_frequencies_are_for_given_words():
    from fuse_nb.spelling import spell
    spelled = spell(source(), target(), some_words(50))
    for words in (None, 50, spelled):
        with pytest.raises(ValueError, match="frequencies"): fit(words=words, frequencies=[1.0]*50)


def test_the_forms_of_given_spellings_are_recorded():
    from fuse_nb.spelling import FORMS, spell
    for forms in (FORMS, ("text",), ("start", "text")):
        assert fit(words=spell(source(), target(), some_words(80), forms=forms)).config["forms"] == list(forms)


def test_a_word_list_may_be_any_iterable_of_texts():
    words = some_words(120)
    one = fit(words=words)
    for same in (tuple(words), np.array(words), dict.fromkeys(words), (w for w in words)):
        assert torch.equal(one.tensors[2], fit(words=same).tensors[2])


# ---------------------------------------------------------------- a device without float64

def there(model, device):
    model.embedding_table = model.embedding_table.to(device)
    return model


@pytest.mark.parametrize("options", [dict(), dict(weighting=0.5), dict(center=True, classes="larger"), dict(classes="target", ridge=0.1)], ids=str)
def test_a_device_without_float64_fits_and_applies(options):
    here = fit(words=some_words(200), frequencies=np.arange(200) + 1.0, **options)
    device = DEVICE
    with Machine(double=False):
        adapter = fit(there(source(), device), there(target(), device), words=some_words(200), frequencies=np.arange(200) + 1.0, **options)
        assert all(T.device.type == "pretend" for T in (*adapter.tensors.values(), *adapter.pairs.values(), adapter.mean))
        found = {k: T.cpu() for k, T in (adapter.tensors | adapter.pairs).items()}
        x, up = (torch.randn(3, 2, d, generator=torch.Generator().manual_seed(0)) for d in (8, 5))
        y, back = (f(t.to(device)).cpu() for f, t in ((adapter.push, x), (adapter.pullback, up)))
        small = adapter.compress(rank=2).tensors[2].cpu()
    assert set(found) == set(here.tensors | here.pairs) and adapter.coverage["held_out"] == pytest.approx(here.coverage["held_out"], abs=1e-4)
    for k, T in (here.tensors | here.pairs).items(): torch.testing.assert_close(found[k], T, rtol=0, atol=1e-5)
    if not options.get("center"): torch.testing.assert_close(y, tprod(x.mT, here.tensors[2]).mT, rtol=0, atol=1e-4)
    torch.testing.assert_close(back, tprod(up.mT, ttranspose(here.tensors[2])).mT, rtol=0, atol=1e-4)
    torch.testing.assert_close(small, here.compress(rank=2).tensors[2], rtol=0, atol=1e-4)


def test_the_pretend_device_refuses_what_a_device_refuses():
    device = DEVICE
    with Machine(double=False):
        x = torch.ones(2, 2).to(device)
        with pytest.raises(TypeError, match="float64"): x.double()
        with pytest.raises(TypeError, match="float64"): torch.ones(2, dtype=torch.float64).to(device)
        with pytest.raises(TypeError, match="float64"): torch.zeros(2, dtype=torch.float64, device=device)
        with pytest.raises(RuntimeError, match="mixes"): x + torch.ones(2, 2)
        assert (x @ x).cpu().tolist() == [[2.0, 2.0], [2.0, 2.0]]
