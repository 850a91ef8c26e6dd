#!/usr/bin/env python3
"""Train a CNN of at most 1,000,000 parameters on Tiny ImageNet; the same command starts and resumes a run.

python train.py                                     # configs/tiny1m.yaml
python train.py --config smoke                      # no data needed, minutes on a laptop
python train.py --config my.yaml --optim.lr 0.3 --run.dir runs/lr03
accelerate launch --multi_gpu train.py              # a process per GPU

`tinyimnet train` is the same. The program is tinyimnet/train.py, the loop tinyimnet/training/trainer.py.
"""

import sys

from tinyimnet import errors

errors.exit_on_sigterm()  # before the seconds that the import of torch takes
from tinyimnet import train  # noqa: E402
from tinyimnet.distributed.process_group import exit_process  # noqa: E402

if __name__ == "__main__":
    exit_process(errors.run(train.main, sys.argv[1:], may_lose_output=True))
