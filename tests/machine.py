"What a measured number says of the machine behind it."
import platform

import torch


def machine(device):
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {device}"
