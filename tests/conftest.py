"What all tests share: an offline environment, and one place for the figures of the machine."
import os
os.environ.setdefault("HF_HUB_OFFLINE", "1")         # nothing here may need the network
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")        # threads of several test processes on few cores wait for each other

import pytest


def pytest_collection_modifyitems(items):
    """With several processes (`pytest -n 2 --dist loadgroup`) a file's tests stay together, so that what they share is made once;
    the notebooks share nothing, so each is free to run where there is room."""
    for item in items:
        own = item.get_closest_marker("shares_nothing")
        item.add_marker(pytest.mark.xdist_group(item.nodeid if own else item.path.name))


def pytest_configure(config):
    config.addinivalue_line("markers", "shares_nothing: may run in another process than the rest of its file")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    "A cache folder that no other test sees; `pytestmark = pytest.mark.usefixtures('own_cache')` gives one to each test of a file."
    monkeypatch.setenv("FUSE_NB_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def pair():
    "A small language model, a small encoder with other pieces, and an adapter between them, of random weights."
    import torch
    from test_models import word_pieces
    from test_search import adapter_of, bert, source_of
    torch.manual_seed(0)
    lm, encoder = source_of("gpt2"), bert("pieces", word_pieces())
    return lm, encoder, adapter_of(lm, encoder, {l: torch.randn(32, 32, l) for l in (1, 2, 3)})
