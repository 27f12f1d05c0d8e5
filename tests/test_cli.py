"""The command: what it prints, what it never replaces, and how it ends. A stand-in for the models keeps it fast."""
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from PIL import Image

from fuse_nb import captioning, cli, options
from fuse_nb.search import Result

FUSE = [sys.executable, "-c", "import sys; from fuse_nb.cli import main; sys.exit(main())"]


class Standin:
    "A captioner that needs no models."
    weights, text, stopped = dict(captioning.WEIGHTS), "An image of a cat.", "steps"

    def __call__(self, photo, seed=0):
        row = dict(step=1, loss=5.0, terms={"fluency": 2.0, "image": 0.1}, text=self.text, evaluations=9, dropped=0, seconds=0.1, frontier=[])
        return Result(self.text, [1, 2], 5.0, row["terms"], [row], 0.1, 9, 0, self.stopped)


@pytest.fixture
def standin(monkeypatch):
    made = Standin()
    monkeypatch.setattr(captioning.Captioner, "from_pretrained", classmethod(lambda cls, **k: made))
    return made


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (200, 100, 0)).save(path)
    return path


def run(capsys, *args):
    code = cli.main([str(a) for a in args])
    return code, *capsys.readouterr()


# ---------------------------------------------------------------- nothing is lost

def test_the_photograph_is_not_replaced_by_its_plot(photo, standin, capsys):
    before = photo.read_bytes()
    link = photo.with_name("link.png")
    link.symlink_to(photo)
    for target in (photo, link, photo.parent / "." / photo.name):
        code, out, err = run(capsys, "caption", photo, "--figure", target)
        assert code == 2 and out == "" and "figure" in err and photo.read_bytes() == before


def test_a_figure_replaces_only_a_figure(photo, standin, capsys, tmp_path):
    for kind in ("png", "svg", "pdf"):
        mine = tmp_path / f"mine.{kind}"
        mine.write_bytes(b"not a figure of fuse-nb's")
        assert run(capsys, "caption", photo, "--figure", mine)[0] == 2 and mine.read_bytes() == b"not a figure of fuse-nb's"
        for _ in range(2):
            assert run(capsys, "caption", photo, "--figure", tmp_path / f"out.{kind}")[0] == 0
        assert (tmp_path / f"out.{kind}").stat().st_size > 1000


@pytest.mark.parametrize("figure", ["", "folder", "x" * 300 + ".png", "a.pgf", "a.xyz", "nowhere/a.png", "a", "a.eps"])
def test_a_figure_is_checked_before_the_search(photo, monkeypatch, capsys, tmp_path, figure):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(captioning.Captioner, "from_pretrained", classmethod(lambda *a, **k: pytest.fail("searched first")))
    code, out, err = run(capsys, "caption", photo, "--figure", figure)
    assert code == 2 and out == "" and err.count("\n") == 1 and "figure" in err


@pytest.mark.parametrize("text", ["An image of $\\frac$ a cat.", "$", "a $b$ c", "caf\u00e9 \u732b \U0001f408", "a_{b}^c \\alpha", "tab\tand\x07bell"])
def test_any_caption_can_be_drawn(photo, standin, capsys, tmp_path, text):
    standin.text = text
    code, out, err = run(capsys, "caption", photo, "--figure", tmp_path / "out.png")
    assert code == 0 and out.count("\n") == 1 and Image.open(tmp_path / "out.png").size[0] > 400


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_caption_is_printed_where_its_characters_are_not_known(photo, standin, monkeypatch, encoding):
    standin.text = "An image of a \u732b and a \udcff."
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert cli.main(["caption", str(photo)]) == 0
    assert raw.getvalue().decode(encoding) == "An image of a \\u732b and a \\udcff.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_caption_is_told_when_the_output_is_full(photo, standin, monkeypatch, capsys):
    full = io.TextIOWrapper(open("/dev/full", "wb", buffering=0))
    monkeypatch.setattr(sys, "stdout", full)
    code = cli.main(["caption", str(photo)])
    err = capsys.readouterr().err
    with contextlib.suppress(OSError):
        full.close()
    assert code == 2 and "An image of a cat." in err and "No space left" in err


def test_a_closed_pipe_is_one_line(photo, standin, monkeypatch, capsys):
    class Closed(io.StringIO):
        def flush(self): raise BrokenPipeError(32, "Broken pipe")
    monkeypatch.setattr(sys, "stdout", Closed())
    code = cli.main(["caption", str(photo)])
    assert code == 2 and "An image of a cat." in capsys.readouterr().err


def test_sigterm_gives_the_best_text(photo, standin, capsys):
    def searching(photo, seed=0):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:   # as a search does
            standin.stopped = "interrupted"
            return Standin.__call__(standin, photo)
        raise AssertionError("the signal was lost")
    standin.__class__ = type("S", (Standin,), {"__call__": staticmethod(searching)})
    code, out, err = run(capsys, "caption", photo)
    assert code == 143 and out == "An image of a cat.\n" and "best caption so far" in err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_models_folder_is_not_fitted_into(tmp_path, capsys):
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    (model / "model.safetensors").write_bytes(b"weights")
    code, out, err = run(capsys, "fit", "--lm", model, "--out", model)
    assert code == 2 and out == "" and "--out" in err and (model / "config.json").read_text() == '{"model_type": "gpt2"}'
    (tmp_path / "file").write_text("x")
    assert run(capsys, "fit", "--out", tmp_path / "file")[0] == 2


# ---------------------------------------------------------------- what is said

def test_why_it_stopped_is_said(photo, standin, capsys):
    standin.stopped = "patience"
    code, out, err = run(capsys, "caption", photo)
    assert code == 0 and "stopped: patience" in err
    assert json.loads(run(capsys, "caption", photo, "--json")[1])["stopped"] == "patience"


def test_version_and_help(capsys):
    from fuse_nb import __version__
    assert run(capsys, "--version") == (0, f"fuse-nb {__version__}\n", "")
    code, out, err = run(capsys, "caption", "--help")
    assert code == 0 and "--adapter" in out and err == ""


def test_the_options_lists_are_the_librarys():
    from fuse_nb.combined import RANKERS
    from fuse_nb.scoring import COCO_METRICS, IMAGE_METRICS
    assert set(options.RANKER_NAMES) == set(RANKERS) and set(options.METHOD_NAMES) == set(captioning.METHODS)
    assert options.METRIC_NAMES == COCO_METRICS and options.PICTURE_METRICS == IMAGE_METRICS


def test_only_what_was_given_is_passed(photo, monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(captioning.Captioner, "from_pretrained", classmethod(lambda cls, **k: (given.update(k), Standin())[1]))
    assert run(capsys, "caption", photo, "--beam", 2, "--adapter", "x", "--device", "cpu")[0] == 0
    assert given == {"beam": 2, "adapter": "x", "device": "cpu", "dtype": "auto"}   # the last is the command's own default


def test_warnings_are_one_line_without_source(photo, standin, capsys, monkeypatch):
    import warnings
    real = Standin.__call__
    def warning(self, photo, seed=0):
        warnings.warn("the prefix is\nlong", stacklevel=1)
        return real(self, photo)
    monkeypatch.setattr(Standin, "__call__", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = run(capsys, "caption", photo)
    assert code == 0 and "fuse-nb: warning: the prefix is long\n" in err and ".py" not in err and "warnings.warn" not in err


def test_slow_things_are_announced(photo, standin, capsys, monkeypatch):
    import logging
    real = Standin.__call__
    def making(self, photo, seed=0):
        logging.getLogger("fuse_nb").info("fuse_nb: making adapters/x, once")
        return real(self, photo)
    monkeypatch.setattr(Standin, "__call__", making)
    assert "making adapters/x, once" in run(capsys, "caption", photo)[2]
    assert not logging.getLogger("fuse_nb").handlers


def test_our_own_faults_show_a_traceback(photo, standin, capsys, monkeypatch):
    def broken(self, photo, seed=0):
        raise AssertionError("a bug")
    monkeypatch.setattr(Standin, "__call__", broken)
    with pytest.raises(AssertionError):
        cli.main(["caption", str(photo)])


@pytest.mark.parametrize("error, code", [(OSError(5, "Input/output error", "/mnt/x"), 2), (PermissionError(13, "Permission denied", "/mnt/x"), 2), (MemoryError("no room"), 2), (RecursionError("too deep"), 2),
                                         (KeyboardInterrupt(), 130), (ImportError("no module named x"), 2), (OverflowError("too large"), None)])
def test_one_door(photo, standin, capsys, monkeypatch, error, code):
    def raising(self, photo, seed=0):
        raise error
    monkeypatch.setattr(Standin, "__call__", raising)
    if code is None:
        with pytest.raises(type(error)):
            cli.main(["caption", str(photo)])
        return
    got, out, err = run(capsys, "caption", photo)
    assert got == code and out == "" and err.count("\n") == 1 and "Traceback" not in err
    if getattr(error, "filename", None):
        assert error.filename in err


def test_a_run_that_stops_itself_is_exit_code_1(photo, capsys, monkeypatch, tmp_path):
    from fuse_nb.runlog import RunStopped
    import fuse_nb.runs
    def stop(*a, **k): raise RunStopped("the disk is full")
    monkeypatch.setattr(fuse_nb.runs, "evaluate_folder", stop)
    assert run(capsys, "evaluate", "--images", tmp_path, "--out", tmp_path / "out") == (1, "", "fuse-nb evaluate: the disk is full\n")


def test_ctrl_c_in_evaluate_says_what_is_kept(photo, standin, capsys, tmp_path, monkeypatch):
    for k in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"q{k}.png")
    calls, real = [], Standin.__call__
    def third(self, photo, seed=0):
        calls.append(photo)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, photo)
    monkeypatch.setattr(Standin, "__call__", third)
    code, out, err = run(capsys, "evaluate", "--images", tmp_path, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 130 and "2 captions are in" in err and "same command" in err
    code, out, err = run(capsys, "evaluate", "--images", tmp_path, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0 and "5 captions" in err and len(calls) == 6


def test_messages_speak_of_options(photo, standin, capsys, tmp_path):
    assert run(capsys, "evaluate", "--images", tmp_path, "--out", tmp_path / "out")[0] == 0
    code, out, err = run(capsys, "evaluate", "--images", tmp_path, "--out", tmp_path / "out", "--seed", "3")
    assert code == 2 and "--overwrite" in err and "overwrite=True" not in err and "--out" in err


def test_nothing_scored_is_no_success(tmp_path, capsys, monkeypatch):
    import fuse_nb.scoring as scoring
    report = types.SimpleNamespace(scores={}, missing={"METEOR": "no java"}, table=lambda: "(nothing)", to_json=dict)
    monkeypatch.setattr(scoring, "score_files", lambda *a, **k: report)
    for name in ("p", "r"):
        (tmp_path / f"{name}.json").write_text("{}")
    code, out, err = run(capsys, "score", tmp_path / "p.json", tmp_path / "r.json", "--metrics", "METEOR")
    assert code == 2 and "METEOR: no java" in err


def test_score_passes_photographs_and_frequencies(tmp_path, photo, capsys, monkeypatch):
    import fuse_nb.images as images
    import fuse_nb.scoring as scoring
    seen, written = {}, []
    report = types.SimpleNamespace(scores={"CLIPScore": 1.0}, missing={}, table=lambda: "CLIPScore 1.0", to_json=dict)
    monkeypatch.setattr(scoring, "score_files", lambda *a, **k: (seen.update(k), report)[1])
    monkeypatch.setattr(scoring, "write_document_frequencies", lambda refs, path: written.append((refs, path)), raising=False)
    monkeypatch.setattr(images.ImageTextModel, "from_pretrained", classmethod(lambda cls, name, **k: f"model {name}"))
    for name, data in (("p", {"photo": "a cat"}), ("r", {"photo": ["a cat sits"]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    files = [tmp_path / "p.json", tmp_path / "r.json"]
    code, out, err = run(capsys, "score", *files, "--images", tmp_path, "--image-model", "clip", "--document-frequencies", tmp_path / "r.json", "--write-document-frequencies", tmp_path / "df.json")
    assert code == 0 and seen["images"] == {"photo": str(photo)} and seen["image_model"] == "model clip" and seen["document_frequencies"] == str(tmp_path / "r.json")
    assert written == [({"photo": ["a cat sits"]}, str(tmp_path / "df.json"))]
    assert run(capsys, "score", *files, "--write-document-frequencies", files[0])[0] == 2 and json.loads(files[0].read_text()) == {"photo": "a cat"}


def test_threads_wait_politely_unless_the_user_said_otherwise():
    code = "import os, sys; from fuse_nb.cli import main; main(['--version']); print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    bare = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    told = lambda **more: subprocess.run([sys.executable, "-c", code], env=bare | more, capture_output=True, text=True).stdout.split()[-2:]
    assert told() == ["4000", "False"]
    assert told(OMP_WAIT_POLICY="ACTIVE") == ["None", "False"] and told(GOMP_SPINCOUNT="7") == ["7", "False"]
