"""The loss scale that training in float16 needs, kept on the device."""

import torch
from torch import Tensor

FIRST_SCALE, GROWTH_STEPS = 2.0**16, 2_000  # those of torch.amp.GradScaler


class LossScale:
    """Keeps gradients within what float16 can represent, as torch.amp.GradScaler does,
    in fewer kernels.

    A step whose gradients overflow is skipped and halves the scale; many without an overflow double
    it. All of it happens on the device.
    """

    def __init__(self, adamw: torch.optim.AdamW, gradient: Tensor) -> None:
        self.scale = gradient.new_full((), FIRST_SCALE)
        self._streak = gradient.new_zeros((), dtype=torch.int32)  # of steps without an overflow
        self._overflows = gradient.new_zeros(())  # above 0 where the gradient is not finite
        self._one = gradient.new_ones(())
        self._adamw, self._gradient = adamw, gradient
        # A fused AdamW divides by the first. Where the second is not 0, it leaves weights, moments
        # and its count alone.
        adamw.grad_scale = self.scale  # type: ignore[attr-defined]  # as GradScaler sets it
        adamw.found_inf = self._overflows  # type: ignore[attr-defined]  # as GradScaler sets it

    def step(self) -> None:
        """Let AdamW do its step with a gradient that was computed from the loss times `scale`."""
        self._overflows.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(
            [self._gradient], self._overflows, self._one
        )
        self._adamw.step()
        torch._amp_update_scale_(self.scale, self._streak, self._overflows, 2.0, 0.5, GROWTH_STEPS)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that the next step depends on."""
        return {"scale": self.scale, "streak": self._streak}
