"An adapter's folder, sealed or sealed again, the models it is bound to, and its dtypes. Damage that the seal finds: `test_adapter.py`."
import copy as copies
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse_nb import FuseAdapter
from test_adapter import D, E, fit, own_cache, source, target  # noqa: F401 (a fixture)


# ---------------------------------------------------------------- folders that somebody sealed again

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("sealed")
    return {name: adapter.save_pretrained(where/name) for name, adapter in (("whole", fit()), ("centred", fit(center=True)), ("cut", fit().compress(rank=2)))}


def resealed(folder, new, change):
    "A copy in which `change(state, config)` was made and every hash is right again."
    state, config = load_file(folder/"adapter.safetensors"), json.loads((folder/"config.json").read_text())
    del config["sha256"]
    change(state, config)
    seal = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    new.mkdir()
    save_file({k: T.contiguous() for k, T in state.items()}, new/"adapter.safetensors", metadata=dict(format="fuse_nb.adapter/1", config=seal))
    digest = hashlib.sha256((new/"adapter.safetensors").read_bytes()).hexdigest()
    (new/"config.json").write_text(json.dumps(config | dict(sha256=digest)))
    return new


def spoil(name, value=float("nan")):
    def change(state, config): state[name].view(-1)[1] = value
    return change


def put(name, T):
    def change(state, config): state[name] = T(state) if callable(T) else T
    return change


def drop(*names):
    def change(state, config):
        for name in [k for k in state if k.startswith(names)]: del state[name]
    return change


STATES = {
    "NaN in a class": ("whole", spoil("l1"), "l1.*NaN"), "infinity in a pair": ("whole", spoil("pair2-2", float("inf")), "pair2-2.*infinit"), "NaN in the mean": ("whole", spoil("mean"), "mean.*NaN"),
    "NaN in a bias": ("centred", spoil("l2.bias"), "l2.bias.*NaN"), "NaN in a factor": ("cut", spoil("l2.left"), "l2.left.*NaN"),
    "a narrower class": ("whole", put("l2", lambda s: s["l2"][:-1]), "l2.*shape"), "another tube length": ("whole", put("l2", lambda s: s["l3"].clone()), "l2.*shape"),
    "a pair of another length": ("whole", put("pair2-2", lambda s: s["pair2-2"][..., :1]), "pair2-2.*shape"), "a matrix": ("whole", put("l1", lambda s: s["l1"][..., 0]), "l1.*shape"),
    "transposed": ("whole", put("l1", lambda s: s["l1"].transpose(0, 1)), "l1.*shape"), "integers": ("whole", put("l1", lambda s: s["l1"].long()), "l1.*int64"), "complex": ("whole", put("l1", lambda s: s["l1"].to(torch.complex64)), "l1.*complex64"),
    "a short mean": ("whole", put("mean", lambda s: s["mean"][:-1]), "mean.*shape"), "a short bias": ("centred", put("l2.bias", lambda s: s["l2.bias"][:-1]), "l2.bias.*shape"),
    "no mean": ("whole", drop("mean"), "mean"), "no bias": ("centred", drop("l2.bias"), "l2.bias"), "a bias nobody asked for": ("whole", put("l2.bias", torch.zeros(E, 2)), "l2.bias"),
    "no classes": ("whole", drop("l", "pair"), "no class"), "one class missing": ("whole", drop("l2"), "l2"), "an unknown class": ("whole", put("l9", torch.zeros(D, E, 9)), "l9"), "class 0": ("whole", put("l0", torch.zeros(D, E, 0)), "l0"),
    "a pair beyond the classes": ("whole", put("pair9-1", torch.zeros(D, E, 9)), "pair9-1"), "a pair with 0": ("whole", put("pair0-2", torch.zeros(D, E, 2)), "pair0-2"),
    "another name": ("whole", put("other", torch.zeros(3)), "other"), "a name that nearly fits": ("whole", put("lx", torch.zeros(D, E, 2)), "lx"), "another part": ("whole", put("l2.rest", torch.zeros(D, E, 2)), "l2.rest"),
    "half of the factors": ("cut", drop("l2.right"), "l2"), "factors of two ranks": ("cut", put("l2.left", lambda s: s["l2.left"][:, :1]), "l2"), "a whole beside its factors": ("cut", put("l2", torch.zeros(D, E, 2)), "l2"),
}


@pytest.mark.parametrize("case", STATES)
def test_tensors_that_cannot_be_used_are_refused(case, folders, tmp_path):
    form, change, said = STATES[case]
    assert FuseAdapter.from_pretrained(resealed(folders[form], tmp_path/"same", lambda state, config: None))
    with pytest.raises(ValueError, match=said): FuseAdapter.from_pretrained(resealed(folders[form], tmp_path/"new", change))


FIELDS = ["source", "target", "max_tokens", "classes", "forms", "seed", "center", "weighting", "holdout", "ridge", "words", "storage", "coverage", "version", "made", "seconds",
          *[f"{role}.{f}" for role in ("source", "target") for f in ("name", "d", "rows", "norms", "tokenizer")], *[f"coverage.{f}" for f in ("words", "classes", "beyond", "held_out")]]


@pytest.mark.parametrize("value", ["missing", None, "text", -1.5], ids=str)
@pytest.mark.parametrize("field", FIELDS)
def test_fields_that_are_missing_or_of_another_kind_are_named(field, value, folders, tmp_path):
    *outer, name = field.split(".")
    def change(state, config):
        place = config[outer[0]] if outer else config
        if value == "missing": del place[name]
        else: place[name] = value
    fine = {"text": ("version", "made", "source.name", "target.name", "source.tokenizer", "target.tokenizer"), -1.5: ("seconds",)}
    new = resealed(folders["whole"], tmp_path/"new", change)
    if field in fine.get(value, ()): assert FuseAdapter.from_pretrained(new)
    else:
        with pytest.raises(ValueError, match=f"config.json.*{name}"): FuseAdapter.from_pretrained(new, source(), target())


@pytest.mark.parametrize("name,change", [("classes", lambda c: c.update(classes="best")), ("max_tokens", lambda c: c.update(max_tokens=0)), ("max_tokens", lambda c: c.update(max_tokens=True)), ("max_tokens", lambda c: c.update(max_tokens=10**12)),
                                         ("d", lambda c: c["source"].update(d=0)), ("norms", lambda c: c["source"].update(norms=[1.0])), ("norms", lambda c: c["target"].update(norms=["a"]*32)),
                                         ("classes", lambda c: c["coverage"].update(classes={"x": {}})), ("classes", lambda c: c["coverage"].update(classes={"1": 3})), ("ridge", lambda c: c.update(ridge={"x": 1.0}))])
def test_values_that_make_no_sense_are_named(name, change, folders, tmp_path):
    new = resealed(folders["whole"], tmp_path/"new", lambda state, config: change(config))
    with pytest.raises(ValueError, match=f"config.json.*{name}"): FuseAdapter.from_pretrained(new, source(), target())


def test_what_is_no_safetensors_file_is_refused(folders, tmp_path):
    new = resealed(folders["whole"], tmp_path/"new", lambda state, config: None)
    (new/"adapter.safetensors").write_bytes(b"no tensors here")
    config = json.loads((new/"config.json").read_text()) | dict(sha256=hashlib.sha256(b"no tensors here").hexdigest())
    (new/"config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="adapter.safetensors"): FuseAdapter.from_pretrained(new)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"format": ["fuse_nb.adapter/1"]}', "[" * 100_000])
def test_a_config_of_another_kind_is_refused(text, folders, tmp_path):
    new = resealed(folders["whole"], tmp_path/"new", lambda state, config: None)
    (new/"config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"): FuseAdapter.from_pretrained(new)


def test_a_config_in_another_encoding_is_refused(folders, tmp_path):
    new = resealed(folders["whole"], tmp_path/"new", lambda state, config: None)
    (new/"config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="config.json"): FuseAdapter.from_pretrained(new)


@pytest.mark.parametrize("name", [None, 3, ["a"]])
def test_a_name_must_be_a_name(name):
    with pytest.raises(TypeError, match="name"): FuseAdapter.from_pretrained(name)


def test_a_model_s_folder_is_not_written_over(tmp_path):
    (tmp_path/"config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(FileExistsError, match="config.json"): fit().save_pretrained(tmp_path)
    assert (tmp_path/"config.json").read_text() == '{"model_type": "gpt2"}' and [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["config.json"]


def test_an_adapter_without_provenance_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="config lacks the field"): FuseAdapter({1: torch.zeros(2, 3, 1)}).save_pretrained(tmp_path/"a")
    assert not (tmp_path/"a").exists()


# ---------------------------------------------------------------- dtypes

@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool, torch.complex64, "float16", 16], ids=str)
def test_an_adapter_is_of_real_numbers(dtype, folders):
    adapter = FuseAdapter.from_pretrained(folders["whole"])
    for call in (lambda: FuseAdapter.from_pretrained(folders["whole"], dtype=dtype), lambda: adapter.to(dtype=dtype), lambda: adapter.compress(dtype=dtype), lambda: adapter.compress(rank=2, dtype=dtype)):
        with pytest.raises((TypeError, ValueError), match="dtype"): call()
    assert adapter.tensors[1].dtype == torch.float32


@pytest.mark.parametrize("tube", [torch.ones(3, 2, D, dtype=torch.int64), torch.ones(3, 2, D, dtype=torch.bool), torch.ones(3, 2, D, dtype=torch.complex64), np.ones((3, 2, D), dtype=np.float32), [[[1.0]*D]], None], ids=lambda t: type(t).__name__)
def test_tubes_are_of_real_numbers(tube):
    adapter = fit()
    for call in (adapter.push, adapter.pullback):
        with pytest.raises(TypeError, match="tube"): call(tube)


# ---------------------------------------------------------------- whose models

def test_check_binds_a_copy_and_leaves_a_shared_adapter_alone(folders):
    adapter = fit()
    first = adapter.source, adapter.target
    assert adapter.check(*first) is adapter and adapter.check() is adapter
    other = source(), target()
    for m in other: m.embedding_table = m.embedding_table.bfloat16()
    bound = adapter.check(*other)
    assert (bound.source, bound.target) == other and (adapter.source, adapter.target) == first
    assert all(bound.tensors[l] is T for l, T in adapter.tensors.items()) and bound.config == adapter.config
    assert adapter.check(source=other[0]).target is first[1]
    stored = FuseAdapter.from_pretrained(folders["whole"])
    assert stored.check(*first).source is first[0] and stored.source is None


def test_what_does_not_fit_changes_nothing():
    adapter = fit()
    first = adapter.source, adapter.target
    with pytest.raises(ValueError, match="target"): adapter.check(source(), source())
    assert (adapter.source, adapter.target) == first
    for bad in (3, "source", object()):
        with pytest.raises(TypeError, match="source"): adapter.check(bad, target())


def test_a_second_objective_leaves_the_first_alone():
    pytest.importorskip("transformers")
    from fuse_nb.losses import Fluency
    from fuse_nb.objective import Objective, Term, gradient
    from test_search import adapter_of, bert, source_of
    from test_models import word_pieces
    torch.manual_seed(0)
    lm, encoder = source_of("gpt2"), bert("pieces", word_pieces())
    low = source_of("gpt2", torch.bfloat16), copies.deepcopy(encoder)
    low[0].model.load_state_dict(lm.model.state_dict())
    adapter = adapter_of(lm, encoder, {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
    def objective(lm, encoder): return Objective(Term(Fluency(lm)), Term(encoder.text("a cat on a mat"), weight=3.0, adapter=adapter))
    one, rows = objective(lm, encoder), lm.tokenize(["a photo of a dog"])
    before = gradient(one, rows)
    two = objective(*low)
    assert (adapter.source, adapter.target) == (lm, encoder)
    assert all(torch.equal(a, b) for a, b in zip(before, gradient(one, rows)))
    assert gradient(two, rows)[1].dtype == torch.bfloat16 and two.terms[1].adapter.target is low[1]


# ---------------------------------------------------------------- one class, several rooms

ALONE = """
from fuse_nb.adapter import FuseAdapter
import torch
adapter = FuseAdapter({1: torch.ones(2, 3, 1)})
for f in (lambda: FuseAdapter.fit, lambda: FuseAdapter.from_pretrained, lambda: adapter.save_pretrained):
    try: f()
    except AttributeError as e: assert "from fuse_nb import FuseAdapter" in str(e), e
    else: raise SystemExit("no error")
from fuse_nb import FuseAdapter as whole
assert whole is FuseAdapter
for name in "fit cached save_pretrained from_pretrained tensor pieces push pullback predict check to compress score coverage nbytes".split(): assert hasattr(FuseAdapter, name), name
from fuse_nb.fitting import FuseAdapter as named
assert named is whole and not hasattr(whole, "nothing")
"""


def test_the_front_door_gives_the_whole_class():
    run = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
