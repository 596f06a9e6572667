"""GPUs: what their data sheets promise, and the time that an operation takes at least."""

from __future__ import annotations

from dataclasses import dataclass

from vdvae.counting.cost import Cost

LAUNCH_SECONDS = 2.5e-6
"""The least time from one kernel to the next, of a queue that is never empty or of a CUDA graph; an estimate."""
BANDWIDTH_SHARE = 2.8 / 3.35
CONVOLUTION_SHARE = 500 / 989.4
PRODUCT_SHARE = 600 / 989.4
"""What is taken to be reached of the data sheet's figures: estimates for an H100, of 2.8 TB/s, and of 500 TFLOP/s in
convolutions and 600 in matrix products of bf16. The same shares are taken of other cards."""
GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet has it."""

    title: str
    bandwidth: float
    """Bytes per second between the chip and its memory."""
    memory_bytes: int
    """All of it; the driver and CUDA's context take up to 1 GB."""
    flops: dict[str, float]
    """FLOP/s of matrix products by precision, dense, with sums in fp32; it has no precision that is missing."""
    processors: int
    """Streaming multiprocessors, by which a compiler splits sums."""
    capability: tuple[int, int]
    """The compute capability, major and minor."""

    @property
    def has_triton(self) -> bool:
        """Whether PyTorch's compiler writes kernels for it: since PyTorch 2.7, for 8.0 and newer."""
        return self.capability >= (8, 0)

    def seconds(self, name: str, cost: Cost, precision: str) -> float:
        """The time that an operation takes at least: of its launches, of its bytes or of its arithmetic, whichever is
        the longest.

        Args:
            name: of the operation: convolutions reach less than products.
            cost: of the operation.
            precision: that it multiplies in.
        """
        share = CONVOLUTION_SHARE if name.startswith("conv") else PRODUCT_SHARE
        by_arithmetic = cost.flops / (share * self.flops[precision])
        return max(cost.launches * LAUNCH_SECONDS, cost.bytes / (BANDWIDTH_SHARE * self.bandwidth), by_arithmetic)


CARDS = {
    # NVIDIA H100 Tensor Core GPU data sheet, SXM5 (which prints the figures with sparsity, twice as much).
    "h100": Card(
        "H100 80 GB SXM",
        3.35e12,
        80 * GIB,
        {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
        132,
        (9, 0),
    ),
    # NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM4.
    "a100": Card(
        "A100 80 GB SXM",
        2.039e12,
        80 * GIB,
        {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12},
        108,
        (8, 0),
    ),
    # NVIDIA V100 Tensor Core GPU data sheet, SXM2; neither TF32 nor bf16.
    "v100": Card("V100 32 GB SXM2", 0.9e12, 32 * GIB, {"fp32": 15.7e12, "fp16": 125e12}, 80, (7, 0)),
    # NVIDIA Ada GPU architecture, appendix A: Tensor Cores that sum in fp32, as PyTorch has them do.
    "rtx4090": Card(
        "GeForce RTX 4090 24 GB",
        1.008e12,
        24 * GIB,
        {"fp32": 82.6e12, "tf32": 82.6e12, "bf16": 165.2e12, "fp16": 165.2e12},
        128,
        (8, 9),
    ),
}
"""GPUs by the name that a command line has for them."""
