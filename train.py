#!/usr/bin/env python3
"""Train a network of at most 1,000,000 parameters on Tiny ImageNet; the same command starts and resumes a run.

accelerate launch train.py                                   # configs/tiny1m.yaml
accelerate launch train.py --config configs/smoke.yaml       # no data needed, minutes on a laptop
python train.py --config configs/tiny1m.yaml --optim.lr 0.3 --run.dir runs/lr03

The program itself is tinyimnet/train.py.
"""

import sys

from tinyimnet import errors, train
from tinyimnet.distributed.process_group import exit_process

if __name__ == "__main__":
    exit_process(errors.run(train.main, sys.argv[1:]))
