"Models that read in 16 bits: tables, adapters and reductions in float32, what is reported read once more, the dtype from the command to the models."
import copy

import pytest
import torch

from fuse_nb import cli, precision
from fuse_nb.autodan import AutoDAN
from fuse_nb.captioning import Captioner
from fuse_nb.causal import CausalLM
from fuse_nb.combined import RANKERS
from fuse_nb.encoders import TextEncoder
from fuse_nb.images import ImageTextModel
from fuse_nb.losses import Fluency, NextTokens, TargetText, ZeroShotLabel
from fuse_nb.makers import settings_identity
from fuse_nb.objective import Objective, Term, gradient, token_gradient
from fuse_nb.precision import best_dtype, in_dtype, load_in, pick_dtype
from fuse_nb.swaps import GCG, PEZ, RandomSearch
from fuse_nb.tables import word_table
from test_models import folders  # noqa: F401 (a fixture)
from test_search import adapter_of, made, own_cache  # noqa: F401 (fixtures)

BF16, PREFIX = torch.bfloat16, "a photo of"


def low(model, dtype=BF16):
    "A copy that reads in 16 bits."
    new = copy.copy(model)
    vars(new).pop("embedding_table", None)
    new.model, new._remembered = copy.deepcopy(model.model), {}
    if hasattr(model, "family"):
        new.family = copy.copy(model.family)
        new.family.model = new.model
    return in_dtype(new, dtype)


def bridged(lm, target, tensors): return Objective(Term(lm, 0.3), Term(target.text("the dog ran"), 22.0, adapter_of(lm, target, tensors)))


def search(name):
    quiet = dict(progress=False)
    swaps = {"gcg": GCG(steps=3, candidates=12, topk=6, length=4, **quiet), "pez": PEZ(steps=3, length=4, **quiet), "random-search": RandomSearch(steps=3, candidates=8, length=4, **quiet)}
    return swaps.get(name) or AutoDAN(beam=2, candidates=6, steps=3, ranker=name, **quiet)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*RANKERS, "gcg", "pez", "random-search"])
def test_what_is_reported_is_the_objective_read_once_more(made, name, dtype):
    lm, target = low(made["gpt2"], dtype), low(made["pieces"], dtype)
    objective = bridged(lm, target, made["gpt2-pieces"].tensors)
    r = search(name).minimize(objective, prefix=PREFIX, seed=1)
    start = len(lm.tokenize([PREFIX])[0])
    total, terms = bridged(lm, target, made["gpt2-pieces"].tensors)([r.ids], start)[0]   # one that remembers nothing
    assert r.loss == total and r.terms == terms                         # not near it: the very numbers
    exact = bridged(made["gpt2"], made["pieces"], made["gpt2-pieces"].tensors)([r.ids], start)[0][0]
    assert r.loss == pytest.approx(exact, abs=0.15) and r.settings["dtype"] == str(dtype)[6:]


def test_in_float32_nothing_is_read_twice(made, monkeypatch):
    objective, read = bridged(made["gpt2"], made["pieces"], made["gpt2-pieces"].tensors), []
    real = Objective._ask
    monkeypatch.setattr(Objective, "_ask", lambda self, t, seqs, *a: read.append(len(seqs)) or real(self, t, seqs, *a))
    r = search("random-search").minimize(objective, prefix=PREFIX, seed=1)
    assert sum(read) == 2 * r.evaluations and "dtype" not in r.settings       # two terms
    read.clear()
    r = search("random-search").minimize(bridged(low(made["gpt2"]), made["pieces"], made["gpt2-pieces"].tensors), prefix=PREFIX, seed=1)
    assert sum(read) == 2 * (r.evaluations + 1) and r.settings["dtype"] == "bfloat16"   # one of the models is enough


def test_a_device_that_has_failed_does_not_take_the_result(made):
    objective = bridged(low(made["gpt2"]), low(made["pieces"]), made["gpt2-pieces"].tensors)
    def fail(row):
        objective.terms[1].loss.exact = lambda texts: (_ for _ in ()).throw(RuntimeError("CUDA error"))
    s = search("random-search")
    s.callback = fail
    with pytest.warns(UserWarning, match="CUDA error"): r = s.minimize(objective, prefix=PREFIX, seed=1)
    assert r.loss == r.trace[-1]["loss"]


def test_losses_are_float32_and_finite(made):
    lm, target = low(made["gpt2"]), low(made["pieces"])
    rows = lm.tokenize(["a photo of the dog", "a photo of cats"])
    objective = Objective(Term(Fluency(lm)), Term(TargetText(lm, " cat")), Term(NextTokens(lm, "the dog")), Term(ZeroShotLabel(lm, "a", ("a", "the"))), Term(target.text("the dog"), 22.0, adapter_of(lm, target, made["gpt2-pieces"].tensors)))
    values = objective(rows, 3)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in (values.total, *values.terms.values()))
    assert lm.nll(rows).dtype == torch.float32 == target.encode(["a dog"]).dtype
    assert (target.encode(["a dog"]).norm(dim=1) - 1).abs() < 1e-5              # the length is taken in float32
    same = [len(rows[0])] * 2
    rows = [rows[0], rows[0]]
    assert len(rows[0]) == same[0]
    losses, slopes = gradient(objective, rows, 3)
    assert losses.dtype == slopes.dtype == torch.float32 and slopes.isfinite().all()
    assert token_gradient(objective, rows, 3)[1].dtype == torch.float32


def test_tables_stay_float32_and_an_adapter_still_fits(made):
    lm, target = low(made["gpt2"]), low(made["pieces"])
    for new, old in ((lm, made["gpt2"]), (target, made["pieces"])):
        assert torch.equal(new.embedding_table, old.embedding_table) and new.embedding_table.dtype == torch.float32
        assert new.fingerprint == old.fingerprint and new.identity != old.identity and new.dtype == BF16
        assert {p.dtype for p in new.model.parameters()} == {BF16}
    made["gpt2-pieces"].check(lm, target)
    new = copy.copy(made["gpt2"])
    new.model, new._remembered = copy.deepcopy(new.model), {}
    before = new.identity                                               # asked for before it is changed
    assert in_dtype(new, BF16).identity != before


def test_a_table_made_in_16_bits_is_not_taken_for_another(made, own_cache, tmp_path):
    def folders_of(target):
        word_table(made["gpt2"], target)
        return {p.name for p in (tmp_path / "tables").glob("words-*")}
    first = folders_of(made["pieces"])
    assert len(first) == 1 and len(folders_of(low(made["pieces"]))) == 2 and len(folders_of(made["pieces"])) == 2


def test_a_search_is_not_continued_in_another_dtype(made):
    tensors = made["gpt2-pieces"].tensors
    full, half = bridged(made["gpt2"], made["pieces"], tensors), bridged(low(made["gpt2"]), low(made["pieces"]), tensors)
    assert all(a != b for a, b in zip(full.identity(), half.identity()))         # of the language model nothing else differs than what it reads in
    for one, other in ((full, half), (half, full)):
        r = search("lm").minimize(one, prefix=PREFIX, seed=1)
        with pytest.raises(ValueError, match="resume: that run had the (dtype|objective)"): search("lm").minimize(other, prefix=PREFIX, seed=1, resume=r)
        more = search("lm")
        more.steps = 4
        assert more.minimize(one, prefix=PREFIX, seed=1, resume=r).trace[-1]["step"] == 4


# ---------------------------------------------------------------- loading

@pytest.mark.parametrize("kept", [torch.float32, BF16], ids=str)
def test_a_folder_is_read_as_it_is_kept(folders, tmp_path, kept):
    tok = CausalLM.from_pretrained(folders["llama"], device="cpu")
    tok.model.to(kept).save_pretrained(tmp_path)
    tok.tokenizer.save_pretrained(tmp_path)
    exact = CausalLM.from_pretrained(tmp_path, device="cpu")
    lm = load_in(CausalLM, tmp_path, "cpu", BF16)
    assert lm.dtype == lm.model.dtype == BF16 and lm.embedding_table.dtype == torch.float32
    assert torch.equal(lm.embedding_table, exact.embedding_table) and lm.fingerprint == exact.fingerprint
    assert load_in(CausalLM, tmp_path, "cpu", torch.float32).dtype == torch.float32


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_the_picture_is_read_in_float32(folders, family):
    import numpy as np
    photo = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    exact, half = ImageTextModel.from_pretrained(folders[family], device="cpu"), load_in(ImageTextModel, folders[family], "cpu", BF16)
    assert torch.equal(exact.encode_image(photo), half.encode_image(photo))
    a, b = exact.encode(["a photo of a dog"]), half.encode(["a photo of a dog"])
    assert not torch.equal(a, b) and torch.nn.functional.cosine_similarity(a, b) > 0.995


def test_a_picture_is_read_in_float32_whatever_the_file_holds(folders, tmp_path):
    import shutil
    shutil.copytree(folders["clip"], tmp_path / "m")
    ImageTextModel.from_pretrained(folders["clip"], device="cpu").model.to(BF16).save_pretrained(tmp_path / "m")
    photo = torch.arange(40 * 50 * 3).reshape(40, 50, 3).to(torch.uint8).numpy()
    exact, half = ImageTextModel.from_pretrained(tmp_path / "m", device="cpu"), load_in(ImageTextModel, tmp_path / "m", "cpu", BF16)
    assert torch.equal(exact.encode_image(photo), half.encode_image(photo)) and half.model.text_model.dtype == BF16


def test_layers_that_a_sentence_encoder_adds(folders):
    encoder = TextEncoder.from_pretrained(folders["bert"], device="cpu")
    encoder.settings.dense, before = [(torch.eye(32), None, "Identity")], encoder.encode(["a dog"])
    assert torch.nn.functional.cosine_similarity(in_dtype(encoder, BF16).encode(["a dog"]), before) > 0.999


# ---------------------------------------------------------------- what is asked for

@pytest.mark.parametrize("bad", ["int8", "float64", "half", "", "BFLOAT16", torch.float64, torch.int8, 16, "fp16"], ids=repr)
def test_an_unknown_dtype_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="^dtype must be one of float32, bfloat16, float16, auto, got"): pick_dtype(bad, "cpu")
    with pytest.raises(ValueError, match="^dtype must be one of"): Captioner.from_pretrained(dtype=bad, device="cpu", steps=2)
    with pytest.raises(ValueError, match="^dtype must be one of"): settings_identity(dtype=bad, device="cpu")


def test_a_dtype_that_the_device_has_not_is_refused_by_name(monkeypatch):
    def lacks(dtype, device):
        if dtype == torch.float16: raise RuntimeError('"gelu" not implemented for \'Half\'')
    monkeypatch.setattr(precision, "_try_out", lacks)
    with pytest.raises(ValueError, match="^dtype float16 cannot be used on cpu: .*not implemented"): pick_dtype("float16", "cpu")
    assert pick_dtype("bfloat16", "cpu") == BF16


def test_weights_that_float16_cannot_hold_are_refused_by_name(made):
    large = copy.copy(made["gpt2"])
    large.model = copy.deepcopy(large.model)
    large.model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="^dtype float16 cannot hold the weights of gpt2"): low(large, torch.float16)
    assert low(large).dtype == BF16                                              # its range is float32's


def test_auto_is_float32_where_nobody_measured(): assert best_dtype(torch.device("mps")) == "float32"


@pytest.mark.parametrize("has", [(), ("_is_avx512_bf16_supported",), ("_is_amx_tile_supported",)])
def test_auto_asks_the_processor(monkeypatch, has):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"): monkeypatch.setattr(torch.cpu, name, lambda name=name: name in has, raising=False)
    assert best_dtype(torch.device("cpu")) == ("bfloat16" if has else "float32")
    assert best_dtype(torch.device("mps")) == "float32"


def test_auto_on_a_torch_that_cannot_be_asked(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"): monkeypatch.delattr(torch.cpu, name, raising=False)
    assert best_dtype(torch.device("cpu")) == "float32"


@pytest.mark.parametrize("capability, wanted", [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_asks_the_card(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert best_dtype(torch.device("cuda")) == wanted


def test_a_run_is_told_by_what_auto_stands_for(monkeypatch):
    plain = settings_identity(device="cpu")
    assert settings_identity(device="cpu", dtype="float32") == plain             # runs from before can be continued
    for best, wanted in (("bfloat16", settings_identity(device="cpu", dtype="bfloat16")), ("float32", plain)):
        monkeypatch.setattr(precision, "best_dtype", lambda device: best)
        assert settings_identity(device="cpu", dtype="auto") == wanted
    assert set(settings_identity(device="cpu", dtype="bfloat16")) - set(plain) == {"dtype bfloat16"}


# ---------------------------------------------------------------- from the command to the models

@pytest.fixture
def loaded(monkeypatch):
    "The dtypes that the models of a command are asked to read in; nothing is loaded."
    asked = []
    class Enough(ValueError): pass
    def load(kind, name, device, dtype):
        asked.append((kind.__name__, dtype))
        if len(asked) == 2: raise Enough("enough")
    for room in ("captioning", "validity", "precision"): monkeypatch.setattr(f"fuse_nb.{room}.load_in", load)
    monkeypatch.setattr("fuse_nb.embeddings.embedding_of", lambda text, encoder: None)
    return asked


@pytest.mark.parametrize("given, wanted", [(None, None), ("float32", torch.float32), ("bfloat16", BF16), ("float16", torch.float16), ("auto", BF16)])
@pytest.mark.parametrize("command", ["caption", "invert", "validate"])
def test_a_commands_dtype_reaches_both_models(command, given, wanted, loaded, monkeypatch, tmp_path, capsys):
    from PIL import Image
    monkeypatch.setattr(precision, "best_dtype", lambda device: "bfloat16")
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    args = {"caption": ["caption", str(tmp_path / "p.png")], "invert": ["invert", "--text", "a dog"], "validate": ["validate"]}[command]
    assert cli.main([*args, "--device", "cpu", *(["--dtype", given] if given else [])]) == 2 and "enough" in capsys.readouterr().err
    default = BF16 if command == "caption" else torch.float32                    # `auto` for a caption only
    assert len(loaded) == 2 and {d for _, d in loaded} == {wanted or default}


@pytest.mark.parametrize("given, wanted", [(None, None), ("float32", "float32"), ("bfloat16", "bfloat16"), ("auto", "bfloat16")])
def test_evaluate_gives_its_workers_what_auto_stands_for(given, wanted, monkeypatch, tmp_path, capsys):
    from types import SimpleNamespace
    monkeypatch.setattr(precision, "best_dtype", lambda device: "bfloat16")
    asked = {}
    def run(maker, images, out, references, settings, **more):
        asked.update(settings)
        return SimpleNamespace(report=None, captions={}, errors={}, seconds=0.0)
    monkeypatch.setattr("fuse_nb.runs.evaluate_folder", run)
    assert cli.main(["evaluate", "--images", str(tmp_path), "--out", str(tmp_path / "o"), "--device", "cpu", *(["--dtype", given] if given else [])]) == 0
    assert asked.get("dtype") == wanted and f"read in {wanted or 'float32'}" in capsys.readouterr().err


def test_python_reads_in_float32_if_nothing_is_said(loaded):
    with pytest.raises(ValueError, match="enough"): Captioner.from_pretrained(device="cpu")
    assert {d for _, d in loaded} == {torch.float32}


def test_the_closing_line_says_what_was_used(made):
    for lm, target, wanted in ((made["gpt2"], made["pieces"], "float32"), (low(made["gpt2"]), low(made["pieces"]), "bfloat16")):
        r = search("lm").minimize(bridged(lm, target, made["gpt2-pieces"].tensors), prefix=PREFIX, seed=1)
        assert f"{r.evaluations} texts evaluated in {wanted} in" in cli._summary(r, {})
