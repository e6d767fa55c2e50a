"""One thread for torch: tests share few cores, and sums over threads are sums in another order."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
