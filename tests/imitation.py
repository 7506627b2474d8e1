"""A GPU's ways imitated on a CPU: what it runs instead, what it forbids,
and how it replays a graph.

Numbers are a CPU's. Which operations there are, what they read and write, and when the host waits
are a GPU's.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speaker.model.attention import HEAD_UNIT

FLASH_WIDTH = 256  # the widest head that flash attention takes
# Operations that make the host wait for a value, send one, or whose result's shape depends on
# values.
WAITS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount", "lift_fresh", "where",
}  # fmt: skip
FREE = {  # operations that start no kernel: views, and memory that is not written
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "select", "slice", "unbind", "split", "squeeze",
    "unsqueeze", "detach", "alias", "as_strided", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "_reshape_alias", "_record_function_enter_new", "_record_function_exit", "squeeze_",
    "unsqueeze_",
}  # fmt: skip
KERNELS = {  # of operations that start more than one
    "native_layer_norm_backward": 2,  # for the input's gradient and for the parameters'
    "nll_loss_backward": 2,  # zeros, and what is none
    "fused_attention_backward": 3,
    "masked_fill": 2,  # a copy comes first
}
TENSORS_A_LAUNCH = 64  # of an operation over two lists


@torch.library.custom_op("imitation::fused_attention", mutates_args=())
def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Attention as one operation, laid out as a GPU's kernels do: (B, nhead, T, d),
    heads beside each other.
    """
    result = F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
    return result.transpose(1, 2).contiguous().transpose(1, 2)


@torch.library.custom_op("imitation::fused_attention_backward", mutates_args=())
def fused_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> list[Tensor]:
    shares = scale * query.float() @ key.float().mT
    shares = (shares if bias is None else shares + bias).softmax(-1)
    share_gradient = gradient.float() @ value.float().mT
    scores = scale * shares * (share_gradient - (share_gradient * shares).sum(-1, keepdim=True))
    found = scores @ key.float(), scores.mT @ query.float(), shares.mT @ gradient.float()
    return [tensor.to(query.dtype) for tensor in found]


@fused_attention.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return torch.empty_like(query.transpose(1, 2)).contiguous().transpose(1, 2)


@fused_attention_backward.register_fake
def _(_gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (query, key, value)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, bias, scale = inputs
    ctx.save_for_backward(*tensors, output)  # a GPU keeps the output, too
    ctx.bias, ctx.scale = bias, scale


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, _ = ctx.saved_tensors
    return *fused_attention_backward(gradient, *tensors, ctx.bias, ctx.scale), None, None


fused_attention.register_autograd(_backward, setup_context=_keep)


class AsOnGpu(TorchFunctionMode):
    """Calls what PyTorch calls on a GPU, where that is another operation than on a CPU.

    Refuses attention that no fused kernel takes. With `traced`, for tensors without data, it calls
    the very operations of a GPU; without it ours, which have numbers but no dropout, since a fused
    kernel's masks are nowhere else.
    """

    def __init__(self, traced: bool = False) -> None:
        super().__init__()
        self.traced = traced
        self.attentions: Counter[str] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.dropout and kwargs["training"] and kwargs["p"]:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        if self.traced and func is Tensor.__getitem__:
            return _view(*args)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        dropped: float,
        *,
        scale: float,
    ) -> Tensor:
        width = query.shape[-1]
        assert width % HEAD_UNIT[query.dtype] == 0, (
            f"no fused attention for heads of width {width} in {query.dtype}"
        )
        assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
        is_flash = bias is None and width <= FLASH_WIDTH and query.dtype != torch.float32
        self.attentions["flash" if is_flash else "memory-efficient"] += 1
        if not self.traced:
            return fused_attention(query, key, value, bias, scale)
        if is_flash:
            return torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropped, scale=scale
            )[0]
        mask = None if bias is None else bias.expand(*query.shape[:3], key.shape[2])
        attend = torch.ops.aten._scaled_dot_product_efficient_attention
        return attend(query, key, value, mask, False, dropped, scale=scale)[0]


def _view(tensor: Tensor, key: Any) -> Tensor:
    """Index by slices, None and an ellipsis: Python's own way asks for a driver,
    even where nothing is computed.
    """
    items = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in items:
        place, missing = (
            items.index(Ellipsis),
            tensor.dim() - sum(item is not None for item in items) + 1,
        )
        items[place : place + 1] = [slice(None)] * missing
    for dim, item in enumerate(items):
        assert item is None or isinstance(item, slice), (
            "a number or a tensor as an index makes a device wait"
        )
        tensor = (
            tensor.unsqueeze(dim)
            if item is None
            else torch.ops.aten.slice(tensor, dim, item.start, item.stop)
        )
    return tensor


class Watch(TorchDispatchMode):
    """Refuses what no step may do on a GPU, and counts the kernels that it would start there.

    A step may not make the host wait, send numbers one by one, have a shape that depends on values,
    read outside of its arrays, or mix devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many kernels were started."""
        return sum(self.kernels.values())

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        assert name not in WAITS, f"{func} makes the host wait"
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        assert len(devices) <= 1, f"{func} mixes devices"
        assert not devices or kwargs.get("device") in (None, *devices), (
            f"{func} copies to another device"
        )
        self._check_indices(name, args)
        if name not in FREE:
            self.kernels[name] += (
                _count_launches(args) if "_foreach" in name else KERNELS.get(name, 1)
            )
        return func(*args, **kwargs)

    @staticmethod
    def _check_indices(name: str, args: tuple[Any, ...]) -> None:
        if name == "index_select":
            pairs = [(args[0].shape[args[1]], args[2])]
        elif name == "index":
            pairs = [
                (size, index)
                for size, index in zip(args[0].shape, args[1], strict=False)
                if index is not None
            ]
            assert all(index.dtype != torch.bool for _, index in pairs), (
                "a mask as an index has a shape made of values"
            )
        elif name == "nll_loss_forward":
            pairs = [(args[0].shape[1], args[1])]
        else:
            return
        for size, index in pairs:
            if type(index) is Tensor and index.numel():  # a traced one has no values
                assert 0 <= int(index.min()) <= int(index.max()) < size, (
                    f"{name} reads outside of {size}"
                )


def _count_launches(args: tuple[Any, ...]) -> int:
    """Return the launches of an operation over lists: few,
    but one a tensor where two differ in more than the lists.
    """
    lists = [arg for arg in args if isinstance(arg, list | tuple)]
    alike = all(
        len({(tensor.shape, tensor.stride()) for tensor in tensors}) == 1
        for tensors in zip(*lists, strict=True)
    ) and all(len({tensor.dtype for tensor in each}) == 1 for each in lists)
    return -(-len(lists[0]) // TENSORS_A_LAUNCH) if alike else len(lists[0])


class Memory(TorchDispatchMode):
    """Adds up the bytes of all tensors that live at the same time, by their shapes:
    nothing need be computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = None
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class Graph:
    """Stands where torch.cuda.CUDAGraph does: records the operations of a capture,
    and does them again on replay.

    Like a card's, it reads and writes the very memory that it was captured with, and knows nothing
    of Python's values.
    """

    failure: BaseException | None = None  # raised at the end of each capture
    captures = False  # whether a capture is under way
    ended: ClassVar[list[tuple[object, ...]]] = []  # uses of a memory pool, by hand

    def __init__(self) -> None:
        self._recorder = _Recorder()

    def capture_begin(self, pool: object = None) -> None:  # noqa: ARG002  # PyTorch's name
        Graph.captures = True
        self._recorder.__enter__()

    def capture_end(self) -> None:
        Graph.captures = False
        self._recorder.__exit__(None, None, None)
        if self.failure:
            raise self.failure

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, outputs in self._recorder.calls:
                result = func(*args, **kwargs)
                for new, old in zip(tree_leaves(result), outputs, strict=True):
                    if isinstance(old, Tensor) and _memory(new) != _memory(old):
                        old.detach().copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[OpOverload, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = tree_leaves(result)
        memories = [_memory(leaf) for leaf in tree_leaves((args, kwargs))]
        is_view = not func._schema.is_mutable and all(_memory(leaf) in memories for leaf in outputs)
        if not is_view:  # a view stays one of the same memory
            self.calls.append((func, args, kwargs or {}, outputs))
        return result


def _memory(leaf: object) -> int | None:
    return leaf.untyped_storage().data_ptr() if isinstance(leaf, Tensor) else None


class Stream:
    """Stands where torch.cuda.Stream does; `current` is what torch.cuda.current_stream returns."""

    current: "Stream"

    def __init__(self, device: object = None) -> None:
        self.device = device
        self.before: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)

    def __enter__(self) -> Self:
        self.before.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Stream.current = self.before.pop()
