"""Run a network at a few new positions only, keeping what its masked convolutions read elsewhere.

The features of a generated pixel never change again. All operations but masked convolutions treat
positions independently of each other (a ``PositionEmbedding`` needs to know where they are). So
inside a ``FeatureCache`` the network is called as usual, but on the columns of P positions
(``B x C x P x 1``) instead of on images. Each masked convolution keeps a map of its inputs: it
writes the new columns into the map, gathers what its active taps read, and multiplies that by its
kernel. The network itself is defined once, in ``model.py``.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from layers import PositionEmbedding
from lmconv.generation.recording import Recording
from lmconv.generation.schedule import masked_convolutions
from lmconv.generation.step_plan import Rows, Step, StepPlan, TapReads
from lmconv.generation.window_plan import WindowPlan
from locally_masked_convolution import LocallyMaskedConv2d
from masking import Masks

__all__ = ["FeatureCache"]

# Recording a step takes as long as running several.
_MIN_STEPS_TO_RECORD = 10
# A product of this many rows with a large kernel is faster with the kernel as its left factor.
_FEW_ROWS = range(16, 49)
_LARGE_KERNEL = 2**17


class FeatureCache:
    """The maps of all masked convolutions of a network, and the run through the steps of a plan.

    Use it as a context manager: inside, the network works on columns; outside, it is unchanged. The
    input is one step ahead of the output, as in a language model: the first layer, under the mask
    of type A, is given the values that the step before has added; all other layers and the output
    are at the positions that come next.

    Args:
        network: in evaluation mode.
        plan: the steps, on the network's device.
        min_steps_to_record: record a step for replay if the plan has at least this many of its
            size.

    Attributes:
        plan: as given.
        max_dilation: the largest dilation of the network's masked convolutions.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: StepPlan | WindowPlan,
        min_steps_to_record: int = _MIN_STEPS_TO_RECORD,
    ) -> None:
        self.plan = plan
        self._network = network
        self._layers = masked_convolutions(network)
        self._embeddings = [each for each in network.modules() if type(each) is PositionEmbedding]
        self.max_dilation = max(layer.dilation for layer in self._layers)
        self._min_steps_to_record = min_steps_to_record
        self._buffers: dict[int, Step] = {}
        self._replays: dict[int, Callable[[], None]] = {}
        self._workspaces: dict[tuple[Any, ...], Tensor] = {}
        self._recording: Recording | None = None

    def __enter__(self) -> "FeatureCache":
        with ExitStack() as stack:
            stack.enter_context(parametrize.cached())
            for module in self._network.modules():
                for name in getattr(module, "parametrizations", ()):
                    getattr(module, name)  # computed once, here, and not in a recording
            self._convolutions = [_CachedConvolution(layer, self) for layer in self._layers]
            # Recordings refer to the cache; without this, maps would await the garbage collector.
            for kept in (self._convolutions, self._replays, self._workspaces):
                stack.callback(kept.clear)
            for module in (*self._layers, *self._embeddings):
                stack.callback(module.__dict__.pop, "forward", None)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    @property
    def now(self) -> Step:
        """The current step, in tensors that all steps of its size share."""
        return self._now

    def prefill(self, images: Tensor, masks: Masks, label: Tensor | None = None) -> None:
        """Fill the maps from the visible pixels, if any are read, in one forward pass.

        Images that are equal, as those are of which several completions are drawn, pass only once,
        unless their labels differ.
        """
        if len(self.plan.visible):
            different, sources, label = _different(images, label)
            self._fill_maps(different, masks, torch.arange(len(images)), sources, label)

    def refill(self, index: int, image: Tensor, masks: Masks, label: Tensor | None = None) -> None:
        """Fill the maps of one image of the batch anew, between two steps.

        Args:
            index: number of the image in the batch.
            image: ``1 x C x H x W``.
            masks: as in ``prefill``.
            label: of the image.
        """
        if not len(self.plan.visible):
            return
        modules = (*self._layers, *self._embeddings)
        in_steps = [module.__dict__.pop("forward") for module in modules]
        self._fill_maps(image, masks, torch.tensor([index]), torch.tensor([0]), label)
        for module, forward in zip(modules, in_steps, strict=True):
            module.forward = forward

    def _fill_maps(
        self,
        images: Tensor,
        masks: Masks,
        numbers: Tensor,
        sources: Tensor,
        label: Tensor | None,
    ) -> None:
        """Fill the maps of some images of the batch, each from one of those given."""
        for layer, convolution in zip(self._layers, self._convolutions, strict=True):
            fill = partial(convolution.prefill, numbers=numbers, sources=sources)
            layer.forward = fill  # type: ignore[method-assign]
        self._network(images, masks, label=label)

    def run(self, function: Callable[[], None]) -> Iterator[None]:
        """Call a function that computes the current step, once for each step; pause after each.

        The function must work in place, on tensors that it keeps and on those of ``now``. Where
        steps are recorded, its Python code runs only the first time.
        """
        for layer, convolution in zip(self._layers, self._convolutions, strict=True):
            layer.forward = convolution.step  # type: ignore[method-assign]
        for embedding in self._embeddings:
            embedding.forward = self._embedding(embedding)  # type: ignore[assignment,method-assign]
        for step in self.plan:
            size = step.masks.init.shape[2]
            self._load(size, step)
            if size in self._replays:
                self._replays[size]()
            elif self.plan.number_of_steps(size) < self._min_steps_to_record:
                function()
            elif step.rows.current.is_cpu:
                self._replays[size] = self._record(function)
            elif self.plan.uniform:  # otherwise the reads of later steps are in other tensors
                self._replays[size] = _cuda_graph(function)
            else:
                function()
            yield

    def _embedding(self, embedding: PositionEmbedding) -> Callable[[Tensor], Tensor]:
        """The forward pass of an embedding on columns of the current step."""
        table = embedding.table(*self.plan.image_size)[self.plan.stepped]
        table = torch.cat([table, table[-1:]])  # the padding row

        def forward(x: Tensor) -> Tensor:
            rows = self._now.rows.current // self.plan.batch
            added = table.index_select(0, rows).to(x.dtype).view(len(x), -1, 1, x.shape[1])
            return x + added.permute(0, 3, 1, 2)

        return forward

    def _load(self, size: int, step: Step) -> None:
        """Make a step the current one."""
        if self.plan.in_place:
            self._now, self._reads = step, step.reads
            return
        if size not in self._buffers:
            reads = [read._replace(rows=read.rows.clone()) for read in step.reads]
            self._buffers[size] = Step(
                Rows(*(rows.clone() for rows in step.rows)),
                Masks(*(mask.clone() for mask in step.masks)),
                (reads[0], reads[1], reads[2]),
            )
        now = self._now = self._buffers[size]
        for own, values in zip((*now.rows, *now.masks), (*step.rows, *step.masks), strict=True):
            own.copy_(values)
        self._reads = step.reads
        if self.plan.uniform:  # all steps read the same number of rows
            self._reads = now.reads
            for own_read, read in zip(now.reads, step.reads, strict=True):
                own_read.rows.copy_(read.rows)

    def _record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run a function, and return how to run its operations again."""
        self._recording = recording = Recording()
        try:
            with recording:
                function()
        finally:
            self._recording = None
        recording.share_memory()
        return recording.replay

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function whose Python code must run in every step, even if steps are recorded."""
        if self._recording is None:
            function(*args)
        else:
            self._recording.call(function, *args)

    def for_mask(self, mask: Tensor) -> tuple[Tensor, TapReads, Tensor]:
        """What a layer needs in the current step, given the mask that it is called with.

        Args:
            mask: one of the masks of ``now``, the very tensor.

        Returns:
            The rows of its map to write, its reads, and its tap order.

        Raises:
            ValueError: the mask is another tensor.
        """
        now, tap_orders = self._now, self.plan.tap_orders
        for kind, own in enumerate(now.masks):
            if mask is own:
                written = now.rows.current_in_maps if kind else now.rows.new_in_maps
                return written, self._reads[kind], tap_orders[kind]
        raise ValueError("a masked convolution was given another mask than those of the order")

    def table(self, images: Tensor) -> Tensor:
        """Make a table of those pixels of ``B x C x H x W`` that are stepped through."""
        batch, channels = images.shape[:2]
        table = images.new_zeros(len(self.plan.stepped) + 1, batch, channels)
        table[:-1] = images.flatten(2)[:, :, self.plan.stepped].permute(2, 0, 1)
        return table.view(-1, channels)

    def write_back(self, table: Tensor, images: Tensor) -> None:
        """Copy a table into ``B x C x H x W``, contiguous; all other pixels stay as they are."""
        rows = table.view(len(self.plan.stepped) + 1, len(images), -1)[:-1]
        images.flatten(2)[:, :, self.plan.stepped] = rows.permute(1, 2, 0)

    def columns(self, table: Tensor, rows: Tensor) -> Tensor:
        """Rows of a table as the columns that the network takes: ``B x C x P x 1``."""
        columns = table.index_select(0, rows).view(self.plan.batch, -1, 1, table.shape[1])
        return columns.permute(0, 3, 1, 2)

    def put(self, table: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Set rows of a table from columns, ``B x C x P x 1``: the reverse of ``columns``."""
        table.index_copy_(0, rows, columns.permute(0, 2, 3, 1).flatten(0, 2))

    def workspace(self, *shape: int, like: Tensor) -> Tensor:
        """Uninitialised memory of this shape, and of the dtype of ``like``, that all layers share.

        A layer must not expect to find in it what it left there in an earlier call.
        """
        key = (*shape, like.dtype)
        if key not in self._workspaces:
            self._workspaces[key] = like.new_empty(shape)
        return self._workspaces[key]


def _different(images: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The images that differ, or whose labels do; where each image is among them; their labels."""
    if label is None:
        return *images.unique(dim=0, return_inverse=True), None
    rows = torch.cat([images.flatten(1).double(), label[:, None].double()], dim=1)
    different, sources = rows.unique(dim=0, return_inverse=True)
    pixels = different[:, :-1].to(images.dtype).view(-1, *images.shape[1:])
    return pixels, sources, different[:, -1].long()


def _cuda_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Run a function that may run twice, and return how to launch all its kernels at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()  # libraries allocate what they need
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    graph.replay()
    return graph.replay


class _CachedConvolution:
    """A masked convolution with a map of its inputs; replaces the layer's forward pass."""

    def __init__(self, layer: LocallyMaskedConv2d, cache: FeatureCache) -> None:
        self._layer, self._cache = layer, cache
        dtype = layer.computation_dtype(layer.weight)
        weight = layer.weight.detach().to(dtype).permute(2, 3, 1, 0)  # k x k x C_in x C_out
        # Contiguous, so that the matrices of a run of taps are one matrix.
        self._weight = weight.flatten(0, 1).contiguous()
        self._bias = self._weight.new_zeros(layer.out_channels)
        if layer.bias is not None:
            self._bias.copy_(layer.bias)
        plan = cache.plan
        self._map = self._weight.new_empty(plan.num_rows * plan.batch, layer.in_channels)
        self._map[-2 * plan.batch :] = 0  # the row of zeros and the padding row
        self._products: dict[tuple[Any, ...], _Product] = {}

    def prefill(self, x: Tensor, mask: Tensor, numbers: Tensor, sources: Tensor) -> Tensor:
        """The layer's own forward pass on ``N x C_in x H x W``; fills the map on the way.

        ``numbers`` are those of the images of the batch to fill in, and ``sources`` say where each
        of them is in ``x``.
        """
        plan = self._cache.plan
        rows = x.flatten(2)[:, :, plan.visible].permute(2, 0, 1)  # visible x N x C_in
        own = self._map.view(plan.num_rows, plan.batch, -1)
        own[plan.visible_rows[:, None], numbers] = rows[:, sources].to(self._map.dtype)
        return type(self._layer).forward(self._layer, x, mask)

    def step(self, x: Tensor, mask: Tensor) -> Tensor:
        """The layer at the positions of the current step.

        Args:
            x: ``B x C_in x P x 1``; under the mask of type A, the P' columns from the step before.
            mask: one of the masks of the step.

        Returns:
            ``B x C_out x P x 1``.
        """
        layer = self._layer
        rows = x.permute(0, 2, 3, 1).flatten(0, 2).to(self._weight.dtype)
        out = torch.empty(
            len(x) * mask.shape[2], layer.out_channels, dtype=rows.dtype, device=rows.device
        )
        self._cache.call(self._multiply, rows, mask, out)
        columns = out.view(len(x), -1, 1, layer.out_channels).permute(0, 3, 1, 2)
        if layer.mask_weight is not None:
            columns = columns + layer.mask_term(mask, columns.dtype).unsqueeze(3)
        return columns

    def _check_dilation(self, mask: Tensor) -> None:
        """Check that the mask is one for layers of this dilation."""
        is_dilated = mask is self._cache.now.masks.dilated
        expected = self._cache.max_dilation if is_dilated else 1
        if self._layer.dilation != expected:
            raise ValueError(
                f"a masked convolution of dilation {self._layer.dilation} was given the mask of "
                f"dilation {expected}"
            )

    def _multiply(self, rows: Tensor, mask: Tensor, out: Tensor) -> None:
        """Write rows into the map, and compute ``out`` from what the taps of the step read."""
        written, reads, tap_order = self._cache.for_mask(mask)
        self._map.index_copy_(0, written, rows)
        key = (len(out), reads.runs)
        product = self._products.get(key)
        if product is None:
            if not self._products:
                self._check_dilation(mask)
                self._weight = self._weight[tap_order]
            product = _Product(self._weight, self._bias, reads, out, self._cache.workspace)
            self._products[key] = product
        product.compute(self._map, reads.rows, out)


class _Product:
    """Gather what the taps of a step read, multiply it by their part of the kernel, add the bias.

    All views and memory are prepared in advance, for one size of steps and one set of taps.

    Args:
        weight: ``k*k x C_in x C_out``, in tap order.
        bias: ``C_out``.
        reads: those of a step of this size.
        out: ``B*P x C_out``, as for such a step.
        workspace: ``FeatureCache.workspace``.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        reads: TapReads,
        out: Tensor,
        workspace: Callable[..., Tensor],
    ) -> None:
        count, c_out = out.shape
        self._bias = bias
        self._gathered = workspace(len(reads.rows), weight.shape[1], like=weight)
        inputs = self._gathered.view(count, -1)  # B*P x T*C_in
        widths = [(end - first) * weight.shape[1] for first, end in reads.runs]
        parts = inputs.split(widths, dim=1) if widths else ()
        matrices = [weight[first:end].flatten(0, 1) for first, end in reads.runs]
        self._sums: Tensor | None = None
        is_large = sum(widths) * c_out > _LARGE_KERNEL
        if is_large and count in _FEW_ROWS and weight.device.type == "cpu":
            # One part of the output channels for each thread: x threads x C_out / threads x B*P.
            threads = math.gcd(c_out, torch.get_num_threads())
            self._sums = workspace(threads, c_out // threads, count, like=weight)
            parts = [part.t().expand(threads, -1, -1) for part in parts]
            matrices = [m.unflatten(1, (threads, -1)).permute(1, 2, 0) for m in matrices]
        self._factors = list(zip(parts, matrices, strict=True))

    def compute(self, inputs: Tensor, rows: Tensor, out: Tensor) -> None:
        """Fill ``out``, ``B*P x C_out``.

        Args:
            inputs: a map.
            rows: its rows to read, one for each image, position and tap.
            out: the result.
        """
        if not self._factors:
            out.copy_(self._bias.expand_as(out))
            return
        torch.index_select(inputs, 0, rows, out=self._gathered)
        (part, matrix), *others = self._factors
        if self._sums is None:
            torch.addmm(self._bias, part, matrix, out=out)
            for part, matrix in others:
                out.addmm_(part, matrix)
        else:
            torch.bmm(matrix, part, out=self._sums)
            for part, matrix in others:
                self._sums.baddbmm_(matrix, part)
            torch.add(self._sums.view(-1, len(out)).t(), self._bias, out=out)
