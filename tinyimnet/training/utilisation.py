"""Model FLOPs utilisation (MFU, Chowdhery et al., arXiv 2204.02311): arithmetic of the network against the GPU peak."""

import torch

from tinyimnet.model.network import Network, count_macs

# FLOP/s in bf16 and fp16 without sparsity, from NVIDIA's data sheets, by the name that CUDA gives a whole device.
PEAKS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a device with train.precision; 0 if unknown, as for fp32, whose kernels may use TF32."""
    if device.type != "cuda" or precision == "fp32":
        return 0.0
    return PEAKS.get(torch.cuda.get_device_name(device), 0.0)


class Utilisation:
    """Computes the MFU of a run.

    Args:
        network: the network.
        size: width and height of the images in px.
        peak: FLOP/s of all GPUs together; 0 if unknown.
    """

    def __init__(self, network: Network, size: int, peak: float):
        self.size, self.peak = size, peak
        # An addition and a multiplication for each MAC, in the forward pass and twice in the backward pass.
        self.flops = 6 * count_macs(network, size) if peak else 0

    def of(self, images_per_s: float, resolution: int) -> dict[str, float]:
        """The metric in percent at a resolution in px; empty if the peak is unknown."""
        if not self.peak:
            return {}
        return {"perf/mfu": 100 * self.flops * (resolution / self.size) ** 2 * images_per_s / self.peak}
