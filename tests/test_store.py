"Files written whole, cache entries whose every file is hashed, digests of anything, devices, and names that cannot be had."
import http.server
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import fuse_nb.store as store_room
from fuse_nb.store import cache_dir, cached, fingerprint_of, pick_device, sweep, write_atomic, write_folder, write_json

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path_factory.mktemp("cache")))


def gone():
    "The number of a process that has ended."
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


# --- light ---------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("module", ["files", "store"])
def test_no_torch_at_import(module):
    code = f"import sys, fuse_nb.{module}; print([m for m in ('torch', 'numpy', 'transformers', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- the cache: every file is hashed -----------------------------------------------------------------------------------------------------------

def entry(name="tables/words", value=("cat", "dog")):
    made = []

    def save(x, d):
        (d/"a.json").write_text(json.dumps(x))
        (d/"sub").mkdir()
        (d/"sub"/"b.bin").write_bytes(b"\x00" * 9)
    get = lambda: cached(name, lambda d: json.loads((d/"a.json").read_text()), lambda: made.append(1) or list(value), save)
    return made, get, cache_dir()/name


def rewrite(d): (d/"a.json").write_text('["tac", "god"]')                     # as readable as before
def other_binary(d): (d/"sub"/"b.bin").write_bytes(b"\x00" * 8 + b"\x01")     # a file that `load` does not even read
def add(d): (d/"c.txt").write_text("added")
def remove(d): (d/"sub"/"b.bin").unlink()
def no_list(d): (d/"hashes.json").unlink()
def bad_list(d): (d/"hashes.json").write_text("[]")
def half_list(d): (d/"hashes.json").write_text('{"a.json": "')
def no_hash(d): (d/"hashes.json").write_text(json.dumps({"a.json": "", "sub/b.bin": ""}))


@pytest.mark.parametrize("damage", [rewrite, other_binary, add, remove, no_list, bad_list, half_list, no_hash], ids=lambda f: f.__name__)
def test_any_changed_file_makes_an_entry_again(damage, caplog):
    made, get, folder = entry()
    assert get() == get() == ["cat", "dog"] and len(made) == 1
    damage(folder)
    with caplog.at_level(logging.WARNING, logger="fuse_nb"): assert get() == get() == ["cat", "dog"]
    assert len(made) == 2 and len(caplog.records) == 1 and "damaged" in caplog.text and "\n" not in caplog.records[0].getMessage()


def test_a_large_file_is_hashed_once_and_a_time_set_back_is_no_disguise(monkeypatch, tmp_path):
    import fuse_nb.files as files_room
    big = tmp_path/"w.bin"
    big.write_bytes(b"\x00" * (1 << 24))
    calls, real = [], files_room.sha256_file
    monkeypatch.setattr(files_room, "sha256_file", lambda p: calls.append(p) or real(p))
    first = files_room._hash_of(big)
    assert files_room._hash_of(big) == first and len(calls) == 1
    stat = big.stat()
    with open(big, "r+b") as f: f.write(b"\x01")
    os.utime(big, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files_room._hash_of(big) != first and len(calls) == 2


def test_the_name_of_an_entry_is_checked():
    for bad in ("", "  ", 5, None):
        with pytest.raises((TypeError, ValueError), match="name must"): cached(bad, None, None, None)


def test_several_processes_make_one_entry(tmp_path):
    code = ("import sys, time; from fuse_nb.store import cached, write_json; import json, logging; logging.basicConfig()\n"
            "x = cached('t/shared', lambda d: json.loads((d/'x.json').read_text()), lambda: (time.sleep(.2), 7)[1], lambda x, d: write_json(d/'x.json', x))\n"
            "assert x == 7")
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [p.communicate(timeout=60)[1] for p in running]
    assert [p.returncode for p in running] == [0] * 4 and "".join(said) == ""
    assert sorted(p.name for p in (cache_dir()/"t").iterdir()) == ["shared"]
    assert sorted(p.name for p in (cache_dir()/"t"/"shared").iterdir()) == ["hashes.json", "x.json"]


# --- killed writers -----------------------------------------------------------------------------------------------------------------------------

def test_what_killed_writers_left_is_swept_at_the_next_start():
    made, get, folder = entry()
    get()
    dead, alive = folder.parent/f".words.{gone()}@{HOST}.ab12cd34", folder.parent/f".words.{os.getpid()}@{HOST}.ab12cd34"
    other, elsewhere = folder.parent/f".strings.{gone()}@{HOST}.zz12cd34", folder.parent/f".words.1@another-machine.ab12cd34"
    old, fresh_old_style = folder.parent/".words.k3j4h5g6", folder.parent/".words.k3j4h5g7"
    for d in (dead, alive, other, elsewhere, old, fresh_old_style): (d/"new").mkdir(parents=True)
    (dead/"new"/"half.json").write_text("[1,")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    get()                                                                     # only a read
    assert [d.exists() for d in (dead, alive, other, elsewhere, old, fresh_old_style)] == [False, True, False, True, False, True]
    assert len(made) == 1


def test_a_writer_killed_in_the_middle_is_swept(tmp_path):
    code = ("import os, signal; from fuse_nb.store import write_folder\n"
            f"write_folder(r'{tmp_path}/entry', lambda d: ((d/'a').write_text('x'), os.kill(os.getpid(), signal.SIGKILL)))")
    subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert len(list(tmp_path.iterdir())) == 1                                 # .entry.process@machine.xxxxxxxx
    write_folder(tmp_path/"entry", lambda d: (d/"a").write_text("y"))
    assert [p.name for p in tmp_path.iterdir()] == ["entry"] and (tmp_path/"entry"/"a").read_text() == "y"


def test_sweep_leaves_what_is_not_ours(tmp_path):
    for name in (".bashrc", ".config.settings", ".words.12345678", "words", ".x.1@y"): (tmp_path/name).write_text("mine")
    (tmp_path/".cache.abcdefgh").mkdir()
    (tmp_path/".cache.abcdefgh"/"thesis.tex").write_text("mine")
    for p in tmp_path.iterdir(): os.utime(p, (0, 0))
    before = sorted(p.name for p in tmp_path.iterdir())
    assert sweep(tmp_path) == [] and sorted(p.name for p in tmp_path.iterdir()) == before
    assert sweep(tmp_path/"nowhere") == []


# --- whole or not at all --------------------------------------------------------------------------------------------------------------------------

def test_write_atomic(tmp_path):
    f = tmp_path/"a.txt"
    assert write_atomic(f, "é") == f and f.read_bytes() == "é".encode()
    assert write_atomic(str(f), b"\xff\x00") == f and f.read_bytes() == b"\xff\x00"
    with pytest.raises(UnicodeEncodeError): write_atomic(f, "\ud800")
    with pytest.raises(TypeError, match="content must be"): write_atomic(f, 5)
    with pytest.raises(FileNotFoundError): write_atomic(tmp_path/"no"/"a", "x")
    (tmp_path/"folder").mkdir()
    with pytest.raises(OSError): write_atomic(tmp_path/"folder", "x")
    assert f.read_bytes() == b"\xff\x00" and sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]
    (tmp_path/"link").symlink_to(f)
    write_atomic(tmp_path/"link", "through")
    assert (tmp_path/"link").is_symlink() and f.read_text() == "through"


def test_write_json(tmp_path):
    import torch
    value = dict(a=1, b=[np.float32(2.5), np.arange(3)], c=torch.ones(2), d=tmp_path, e={3, 1}, f="é")
    text = write_json(tmp_path/"x.json", value).read_text()
    assert json.loads(text) == dict(a=1, b=[2.5, [0, 1, 2]], c=[1.0, 1.0], d=str(tmp_path), e=[1, 3], f="é") and len(text.splitlines()) == 8
    with pytest.raises(TypeError, match="object cannot be written"): write_json(tmp_path/"x.json", dict(a=object()))
    assert (tmp_path/"x.json").read_text() == text


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    write_folder(tmp_path/"d", lambda d: (d/"a").write_text("old"))
    def fail(d):
        (d/"a").write_text("new")
        raise RuntimeError("in the middle")
    with pytest.raises(RuntimeError): write_folder(tmp_path/"d", fail)
    assert (tmp_path/"d"/"a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["d"]


# --- one digest of anything ------------------------------------------------------------------------------------------------------------------------

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4), st.binary(max_size=4))
nested = st.recursive(plain, lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.text(max_size=2), x, max_size=3)), max_leaves=6)
def typed(x):
    "A value with its types, for an equality that tells 1 from True and 1.0, and the order of keys."
    if isinstance(x, list): return ("list", *map(typed, x))
    if isinstance(x, dict): return ("dict", *((k, typed(v)) for k, v in x.items()))
    return type(x).__name__, repr(x)


@settings(max_examples=300, deadline=None)
@given(a=st.lists(nested, max_size=3), b=st.lists(nested, max_size=3))
def test_fingerprints_are_equal_when_the_parts_are(a, b):
    assert (fingerprint_of(*a) == fingerprint_of(*b)) == (list(map(typed, a)) == list(map(typed, b)))


def test_fingerprints_of_arrays_and_files(tmp_path):
    import torch
    x = np.arange(6, dtype=np.float32)
    all_of = [x, x.reshape(2, 3), x.astype(np.float64), x[::-1], torch.arange(6).bool(), torch.arange(6).bfloat16(), torch.arange(6).half(), torch.tensor(1.0), b"", ""]
    prints = [fingerprint_of(p) for p in all_of]
    assert len(set(prints)) == len(prints) and all(len(p) == 16 and int(p, 16) >= 0 for p in prints)
    t = torch.arange(6.).reshape(2, 3)
    assert fingerprint_of(t.T) == fingerprint_of(t.T.contiguous()) != fingerprint_of(t) == fingerprint_of(t.clone().requires_grad_())
    (tmp_path/"a").write_bytes(b"one")
    (tmp_path/"b").write_bytes(b"two")
    before = fingerprint_of(tmp_path)
    assert before == fingerprint_of(tmp_path) and fingerprint_of(tmp_path/"a") != fingerprint_of(tmp_path/"b") != fingerprint_of(b"two")
    (tmp_path/"b").rename(tmp_path/"c")
    assert fingerprint_of(tmp_path) != before
    with pytest.raises(FileNotFoundError): fingerprint_of(tmp_path/"none")
    for bad in (object(), np.array([object()])):
        with pytest.raises(TypeError, match="a part must be"): fingerprint_of(bad)


# --- devices ------------------------------------------------------------------------------------------------------------------------------------------

def test_each_process_of_a_machine_gets_a_gpu_of_its_own(monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    got = []
    for rank in range(6):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        got.append(str(pick_device(None)))
    assert got == ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    assert str(pick_device("cuda:2")) == "cuda:2" and str(pick_device("cpu")) == "cpu"
    monkeypatch.delenv("LOCAL_RANK")
    assert str(pick_device(None)) == "cuda:0"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device(None).type in ("cpu", "mps")


def test_a_device_with_a_number_that_it_cannot_have_is_refused():
    for bad in ("cpu:5", "mps:3", "cuda:-1", "", 7, 1.5, []):
        with pytest.raises(ValueError, match="is not there; this machine has .*cpu"): pick_device(bad)


# --- names that cannot be had ---------------------------------------------------------------------------------------------------------------------------

def test_a_folder_of_pickles_is_refused_in_our_words(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch
    from fuse_nb.causal import CausalLM
    ran = tmp_path/"ran"

    class Evil:
        def __reduce__(self): return os.mkdir, (str(ran),)
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8)
    for name, content in (("evil", pickle.dumps(Evil())), ("honest", None)):
        folder = tmp_path/name
        model = transformers.GPT2LMHeadModel(config)
        config.save_pretrained(folder)
        if content: (folder/"pytorch_model.bin").write_bytes(content)
        else: torch.save(model.state_dict(), folder/"pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pickle \(pytorch_model.bin\).*only safetensors are loaded") as e: CausalLM.from_pretrained(folder, device="cpu")
        assert "\n" not in str(e.value) and "weights_only" not in str(e.value) and "torch.load" not in str(e.value)
    assert not ran.exists()


@pytest.mark.parametrize("answer", ["nothing listens", "listens and never answers", "503", "no such host"])
def test_an_unreachable_hub_is_told_in_seconds(answer, monkeypatch):
    class Busy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self): self.send_error(503)
        def log_message(self, *a): pass
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    sock = socket.create_server(("127.0.0.1", 0))
    port, server = sock.getsockname()[1], None
    if answer == "nothing listens": sock.close()
    if answer == "503":
        sock.close()
        server = http.server.HTTPServer(("127.0.0.1", port), Busy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", "http://host.invalid" if answer == "no such host" else f"http://127.0.0.1:{port}")
    try:
        start = time.monotonic()
        with pytest.raises(ValueError, match="the model hub cannot be reached") as e: store_room._find("somebody/some-model", "language model")
        assert time.monotonic() - start < 8 and "\n" not in str(e.value)
    finally:
        if server: server.shutdown()
        sock.close()


def test_a_hub_that_answers_is_asked(monkeypatch):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self): self.send_error(404)                               # an answer is an answer
        def log_message(self, *a): pass
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert store_room._hub_reachable()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not store_room._hub_reachable()
    server.shutdown()


def test_a_name_that_is_no_name():
    for bad in (None, 5, ["a"]):
        with pytest.raises(TypeError, match="the model name must be"): store_room._find(bad, "language model")


def test_data_files_are_found_in_an_installed_package(tmp_path):
    "As pip lays it out: fuse_nb/data without an __init__.py, no checkout beside it."
    import shutil
    import subprocess
    import sys
    from pathlib import Path
    root = Path(__file__).parent.parent
    shutil.copytree(root/"fuse_nb", tmp_path/"fuse_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root/"data", tmp_path/"fuse_nb"/"data")
    code = "from fuse_nb.files import data_file; print(data_file('imagenet_classes.txt'))"
    said = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.strip() == str(tmp_path/"fuse_nb"/"data"/"imagenet_classes.txt"), said.stderr
