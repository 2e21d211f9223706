"""Started by torchrun: trains what each configuration file describes, one after the other."""

import sys
from pathlib import Path

import torch.distributed as dist

from microscope.params import TrainParams, decode_params
from microscope.training import train_all

dist.init_process_group("gloo")
for path in sys.argv[1:]:
    train_all(decode_params(TrainParams, Path(path).read_bytes()))
dist.destroy_process_group()
