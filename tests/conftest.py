"What all tests share: an offline environment, and one place for the figures of the machine."
import os
os.environ.setdefault("HF_HUB_OFFLINE", "1")         # nothing here may need the network
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")        # threads of several test processes on few cores wait for each other
