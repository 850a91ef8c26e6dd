"""One optimizer step: gather and augment -> forward under autocast -> backward -> clip -> optimizer -> EMA.

The host draws, launches, and never waits for the device.
"""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tinyimnet.config import Config
from tinyimnet.data import batches
from tinyimnet.model.network import drop_path_generator
from tinyimnet.training import captured, optim
from tinyimnet.training.captured import Kind
from tinyimnet.training.loss import batch_loss
from tinyimnet.training.state import TrainState
from tinyimnet.training.timing import StepClock


class TrainStep:
    """Takes the steps of a run on this process; a call takes the next one.

    Args:
        config: the configuration.
        accelerator: the process group.
        model: the network, wrapped by Accelerate.
        state: its weights, their EMA, the optimizer and the counters; a call changes them.
        source: the augmented batches.
        micro_batches: rows of the global batch that this process trains on.
        clock: gets the time of each part of a step.

    Attributes:
        weights: the parameters that are trained.

    Raises:
        UserError: train.cuda_graph is on and cannot be used here.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        model: nn.Module,
        state: TrainState,
        source: batches.TrainBatches,
        micro_batches: list[slice],
        clock: StepClock,
    ):
        self.config, self.accelerator, self.model, self.state = config, accelerator, model, state
        self.batches, self.micro_batches, self.clock = source, micro_batches, clock
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.generator = drop_path_generator(accelerator.device)
        self.graphs = None
        if config.train.cuda_graph:
            captured.check(accelerator.device, accelerator.num_processes, len(micro_batches))
            self.graphs = captured.Graphs(self.work, clock)

    def __call__(self) -> None:
        """Take one step over the global batch."""
        step = self.state.step
        with self.clock.part("data"):
            drawn = self.batches.draw(step)
        packed = [drawn.packed(rows) for rows in self.micro_batches]
        kind = Kind(self.batches.resolution(step), drawn.mixed)
        scale, decay = self.lr_scale(step), optim.ema_decay_at(step, self.config.optim.ema_decay)
        self._seed_drop_path(self.micro_batches[0])
        if self.graphs:
            self.graphs.launch(kind, packed[0], scale, decay)
        else:
            self.work(kind, [batches.to_device(each, self.accelerator.device) for each in packed], scale, decay)
        self.state.step += 1
        self.clock.steps += 1

    def lr_scale(self, step: int) -> float:
        """Factor on the peak learning rates at a step."""
        return optim.lr_scale(step, self.config.optim, self.batches.total_steps, self.batches.steps_per_epoch)

    # ---- the work of a step on the device: nothing here may depend on the number of the step ------------------------

    def work(self, kind: Kind, packed: list[Tensor], lr_scale: float | Tensor, ema_decay: float | Tensor) -> None:
        """Train on a batch; what differs between steps of a kind is in the arguments, so that a graph can repeat it.

        Args:
            kind: the kind of the step.
            packed: the draw of each micro-batch, on the device (batches.Draw.packed).
            lr_scale: factor on the peak learning rates.
            ema_decay: decay of the EMA.
        """
        for group in self.state.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_scale
        self.state.keep_statistics()
        loss = self.backward(kind, packed)
        with self.clock.part("optimizer"):
            self.accelerator.unscale_gradients()
            gradients = [weight.grad for weight in self.weights if weight.grad is not None]
            self.step_or_skip(loss, optim.clip_(gradients, self.config.optim.clip_grad_norm))
            for weight in self.weights:
                weight.grad = None
            self.state.ema.update(ema_decay)
        if self.graphs:  # a checkpoint must not read memory of a graph
            for group in self.state.optimizer.param_groups:
                group["lr"] = group["peak_lr"]

    def backward(self, kind: Kind, packed: list[Tensor]) -> Tensor:
        """Accumulate gradients of the mean loss over the global batch; returns this rank's loss."""
        total, accumulation_steps = torch.zeros((), device=self.accelerator.device), len(packed)
        for i, draw in enumerate(packed):
            if i > 0:
                self._seed_drop_path(self.micro_batches[i])
            with self.clock.part("data"):
                images, targets = self.batches.augmented(draw, kind.resolution, mixed=kind.mixed)
            # DDP averages gradients over ranks only in the last micro-batch.
            averaging = self.accelerator.no_sync(self.model) if i + 1 < accumulation_steps else nullcontext()
            with self.clock.part("forward_backward"), averaging:
                loss = batch_loss(self.model(images), targets, self.config.augment) / accumulation_steps
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def step_or_skip(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Step the optimizer; on the device, its kernel skips the step if the gradient is not finite."""
        finite = torch.isfinite(grad_norm)
        optimizer, scaler = self.state.optimizer.optimizer, self.accelerator.scaler
        # Not Accelerate's step(), which searches the path for a package in every step (0.1 ms).
        if scaler:  # sets found_inf and grad_scale itself
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.found_inf, optimizer.grad_scale = (~finite).float(), None
            optimizer.step()
        self.state.count_step(loss, grad_norm, finite)

    def _seed_drop_path(self, rows: slice) -> None:
        self.generator.manual_seed(batches.model_seed(self.config.run.seed, self.state.step, rows.start))
