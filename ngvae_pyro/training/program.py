"""A function of tensors as a flat list of its tensor operations: recorded once, replayed often.

A small VAE spends more time on Python, Pyro's handlers and autograd's graph than on arithmetic,
although every step consists of the same operations as the one before. :class:`Recording` records
them in one call, including the backward pass, and :class:`Program` replays them without the code
that led to them. It runs the same kernels with the same arguments, so the numbers are the same to
the last bit, and random numbers are drawn anew from the same generator.

Recording freezes everything that is not a tensor operation: a Python number, the branch that was
taken. Whatever changes from call to call must be an input, or a tensor that is written to in place,
as parameters and buffers are. A value that is read back (``tensor.item()``, ``if tensor:``,
``tensor.numpy()``) cannot be recorded, and ``Recording.obstacle`` reports it; :func:`difference`
compares the recordings of two calls to find anything else that has changed.
"""

import random
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    make_fx,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Results of at least this many bytes get memory of their own that is kept from call to call. From
# about this size on, the C library returns freed memory to the system, which clears every page
# before it is used again: on two cores of an EPYC virtual machine that was half the time of a step.
KEPT_BYTES = 2**16

# Constants of up to this many numbers are computed only once.
FOLDED_NUMEL = 2**16

# Operations that depend only on the shape, type and device of a tensor.
_SHAPE_ONLY = {
    aten.new_full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
}
# Operations that make a tensor from a Python number, such as the 1.0 of Normal(loc, 1.0).
_FROM_PYTHON = {aten.lift_fresh.default, aten.lift_fresh_copy.default}
# Views that their schemas do not declare.
_VIEWS = {aten._unsafe_view.default, aten._reshape_alias.default}


# Methods of a tensor that expose its values without a tensor operation.
_READS = {"numpy", "tolist", "__array__", "__dlpack__"}
_LIBRARIES = tuple(str(Path(library.__path__[0])) + "/" for library in (torch, pyro))
_PACKAGE = str(Path(__file__).parents[1]) + "/"


class NotRecordable(RuntimeError):
    """A function does more than compute with tensors; the message says what."""


@dataclass(frozen=True)
class Operation:
    """An operation of a recording, for comparison with another recording.

    ``arguments`` are plain values, with the results of other operations given by their positions.
    ``constant`` is a tensor from outside, ``values`` a copy of its values, and ``written`` says
    whether the function writes to it. ``place`` is the line of code that called the operation.
    """

    target: Any
    arguments: Any
    place: str
    constant: Any = None
    values: Tensor | None = None
    written: bool = False


class Recording:
    """One call of ``function``, with the operations that it carried out.

    It is a call like any other: everything it draws, writes to and returns (``results``) is the
    same to the last bit as without recording.

    Args:
        function: Takes the inputs and returns a tuple of tensors (or None). It is called once.
        inputs: The inputs of the call.

    Attributes:
        results: Results of the call.
        obstacle: Something in the call that is not a tensor operation, with its line, or None.
    """

    def __init__(self, function: Callable[..., tuple[Tensor | None, ...]], *inputs: Tensor) -> None:
        self.results: tuple[Tensor | None, ...] = ()
        watch = _Watch()

        def watched(*values: Tensor) -> tuple[Tensor | None, ...]:
            with watch, _WatchReads(watch):
                self.results = function(*values)
                watch.look_at_generators(sys._getframe())
            return self.results

        # In one thread: autograd's own threads would not be recorded.
        with torch.autograd.set_multithreading_enabled(False):
            self.module = make_fx(watched)(*inputs)
        self.obstacle = watch.obstacle
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                # Older versions of torch do not store their shapes.
                node.meta.setdefault("val", getattr(self.module, node.target))
        for node in _operations(self.module.graph):
            if self.obstacle is None and _has_any_size(node):
                self.obstacle = f"{node.target} makes a tensor whose size depends on values"
        self.operations = [] if self.obstacle else _described(self.module)


class Program:
    """The operations of a recording, to be replayed at other inputs of the same shapes.

    Args:
        recording: The recording, which must not be used for another program.

    Raises:
        NotRecordable: If the recorded function reads the value of a tensor back into Python, makes
            a tensor whose size depends on values, or draws from a generator that is not torch's.
    """

    def __init__(self, recording: Recording) -> None:
        if recording.obstacle is not None:
            raise NotRecordable(recording.obstacle)
        self.module = recording.module
        graph = self.module.graph
        # Tensors from outside that a call writes to.
        self.written: list[Any] = [o.constant for o in recording.operations if o.written]
        # The resolution of the coarsest type that it computes with.
        values = [_value(node) for node in _operations(graph)]
        types = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
        self.eps = max((torch.finfo(dtype).eps for dtype in types), default=0.0)
        written = _written(self.module)
        _fold(self.module, written)
        _merge(graph, written)
        _keep(self.module, written)
        graph.eliminate_dead_code(_acts)
        self.module.recompile()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """The function's results, valid until the next call, which writes to the same memory."""
        with torch.no_grad():
            results: tuple[Tensor | None, ...] = self.module(*inputs)
            return results

    @property
    def transfers(self) -> list[str]:
        """Operations that copy between devices, which a CUDA graph cannot do."""
        found = []
        for node in _operations(self.module.graph):
            values = [_value(other) for other in (node, *node.all_input_nodes)]
            tensors = [v for value in values for v in _flat(value) if isinstance(v, Tensor)]
            # A number on the CPU is passed to the kernel as an argument.
            if len({v.device for v in tensors if v.dim() or v is values[0]}) > 1:
                found.append(str(node.target))
        return found

    def __len__(self) -> int:
        """How many operations there are."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)


class _Watch(TorchDispatchMode):
    """Notes the line of each operation, and what cannot be recorded, while a function is."""

    # It passes on whatever it is given.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.obstacle: str | None = None
        self.generators = _generators()

    def note(self, frame: FrameType | None, what: str) -> None:
        """Note an obstacle; the first one is reported."""
        if self.obstacle is None:
            self.obstacle = f"{_place(frame) or 'the function'} {what}"

    def look_at_generators(self, frame: FrameType | None) -> None:
        """Check for draws from Python's or NumPy's generator, which cannot be recorded."""
        if self.obstacle is None and (now := _generators()) != self.generators:
            name = "Python's random" if now[0] != self.generators[0] else "numpy.random"
            self.note(frame, f"draws from {name}")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, frame = kwargs or {}, sys._getframe(1)
        self.look_at_generators(frame)
        if kwargs.get("generator") is not None:
            # Its state is not saved and restored with those of torch.
            self.note(frame, "draws from a generator of its own")
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        mode = get_proxy_mode()
        before = len(mode.tracer.graph.nodes) if mode is not None else 0
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            # The only error that recording adds; all others are errors of the function itself.
            if "tracing tensor" not in str(error):
                raise
            self.note(frame, "reads the value of a tensor")
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        if mode is not None and (new := len(mode.tracer.graph.nodes) - before):
            place = _place(frame)
            for node, _ in zip(reversed(mode.tracer.graph.nodes), range(new), strict=False):
                node.meta["place"] = place
        return result


class _WatchReads(TorchFunctionMode):
    """Notes where the values of a tensor are read without a tensor operation."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _READS:
            self.watch.note(sys._getframe(1), "reads the value of a tensor")
        return func(*args, **(kwargs or {}))


def _generators() -> tuple[Any, Any]:
    """The states of the generators of Python and NumPy."""
    _, keys, *rest = np.random.get_state()
    return random.getstate(), (np.asarray(keys).tobytes(), *rest)


def _place(frame: FrameType | None) -> str:
    """File and line of the code that a frame was called from, ignoring torch and Pyro.

    It is the user's code if the call went through any, else that of this package.
    """
    own = ""
    for caller, line in traceback.walk_stack(frame):
        file = caller.f_code.co_filename
        if file == __file__ and caller.f_code.co_name == "watched":
            break
        if file.startswith(_LIBRARIES) or file == __file__:
            continue
        place = f"{Path(file).name}:{line}"
        if not file.startswith(_PACKAGE):
            return place
        own = own or place
    return own


def _described(module: fx.GraphModule) -> list[Operation]:
    """The operations of a module in their order."""
    written = _written(module)
    numbers = {node: n for n, node in enumerate(module.graph.nodes)}
    described = []
    for node in module.graph.nodes:
        target, constant, values = node.target, None, None
        if node.op == "get_attr":
            # Names follow the order of discovery, so they do not identify the tensors.
            target, constant = node.op, getattr(module, str(node.target))
            if isinstance(constant, Tensor) and not isinstance(constant, nn.Parameter):
                values = constant.detach().clone()
        elif node.op != "call_function":
            target = node.op
        by_number = fx.node.map_arg((node.args, node.kwargs), lambda other: _Result(numbers[other]))
        described.append(
            Operation(
                target,
                _hashable(by_number),
                node.meta.get("place", ""),
                constant,
                values,
                node.op == "get_attr" and node in written,
            )
        )
    return described


class _Result(int):
    """The result of the operation with this number."""


def difference(one: Recording, other: Recording) -> str | None:
    """The first difference between two recordings of a function, besides the values of its tensors.

    Parameters, buffers and other persistent tensors may have changed. A tensor that was made for
    the call, from Python numbers or by NumPy, must have the same values in both.
    """
    for a, b in zip(one.operations, other.operations, strict=False):
        at = f" at {a.place}" if a.place else ""
        if a.target != b.target:
            return f"{a.target}{at} in one step is {b.target} in the next"
        if a.constant is not b.constant and (a.written or not same_values(a.values, b.values)):
            return f"a tensor{at} that is no result of a recorded operation has other values"
        if a.arguments != b.arguments:
            changed = _changed(a.arguments, b.arguments)
            return f"{a.target}{at} takes {changed[0]} in one step and {changed[1]} in the next"
    count, other_count = len(one.operations), len(other.operations)
    if count != other_count:
        return f"{count} operations in one step are {other_count} in the next"
    return None


def _changed(a: Any, b: Any) -> tuple[Any, Any]:
    """The innermost parts that differ, of two arguments that differ."""
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        if len(a) == 2 and isinstance(a[0], type) and a[0] is b[0] and not isinstance(a[1], tuple):
            return a[1], b[1]
        return next(_changed(x, y) for x, y in zip(a, b, strict=True) if x != y)
    return a, b


def same_values(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors have the same layout and the same numbers, with NaN equal to itself."""
    if a is None or b is None:
        return a is b
    like = (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
    return like and bool(((a == b) | ((a != a) & (b != b))).all())


def _operations(graph: fx.Graph) -> Iterable[fx.Node]:
    return (node for node in graph.nodes if isinstance(node.target, OpOverload))


def _acts(node: fx.Node) -> bool:
    """Whether the node has side effects: it writes to memory or advances a random generator."""
    target = node.target
    if not isinstance(target, OpOverload):
        return node.op in ("placeholder", "output")
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


def _has_any_size(node: fx.Node) -> bool:
    """Whether the size of a result depends on the values of the arguments."""
    target: Any = node.target
    if target is aten.index.Tensor:
        # By a mask, not by positions.
        indices: Any = node.args[1]
        types = [_value(index).dtype for index in indices if index is not None]
        return torch.bool in types or torch.uint8 in types
    return torch.Tag.dynamic_output_shape in target.tags


def _value(node: fx.Node) -> Any:
    """A tensor without data that has the node's shape, strides, type and device."""
    return node.meta.get("val")


def _written(module: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose memory is written to after they were computed, and views of such nodes."""
    owner: dict[fx.Node, fx.Node] = {}
    by_memory: dict[int, fx.Node] = {}
    written = set()
    for node in module.graph.nodes:
        owner[node] = node
        if node.op == "get_attr":
            memory = getattr(module, str(node.target)).untyped_storage().data_ptr()
            owner[node] = by_memory.setdefault(memory, node)
        if not isinstance(node.target, OpOverload):
            # An item of a list of results.
            if node.op == "call_function":
                owner[node] = owner[node.args[0]]
            continue
        schema = node.target._schema
        aliased = [a for a, s in zip(node.args, schema.arguments, strict=False) if s.alias_info]
        if node.target in _VIEWS:
            aliased = [node.args[0]]
        if aliased and isinstance(aliased[0], fx.Node):
            owner[node] = owner[aliased[0]]
        if schema.is_mutable:
            written.add(owner[node])
    return {node for node in owner if owner[node] in written}


def _is_pure(node: fx.Node, written: set[fx.Node]) -> bool:
    """Whether the node gives the same result for the same arguments, wherever it is placed."""
    target = node.target
    if not isinstance(target, OpOverload):
        return node.op == "call_function" and node not in written
    random = torch.Tag.nondeterministic_seeded in target.tags
    touched = node in written or any(arg in written for arg in node.all_input_nodes)
    return not (random or touched or target._schema.is_mutable)


def _fold(module: fx.GraphModule, written: set[fx.Node]) -> None:
    """Compute only once the nodes that depend on no input, parameter or buffer."""
    constants: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        inputs = node.all_input_nodes
        if node.target in _SHAPE_ONLY:
            known = {arg: _empty(_value(arg)) for arg in inputs}
        elif node.target in _FROM_PYTHON:
            known = {arg: getattr(module, str(arg.target)) for arg in inputs}
        else:
            known = {arg: constants[arg] for arg in inputs if arg in constants}
        large = any(isinstance(v, Tensor) and v.numel() > FOLDED_NUMEL for v in _flat(_value(node)))
        if large or len(known) < len(inputs) or not _is_pure(node, written):
            continue
        args = fx.node.map_arg(node.args, known.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
        with torch.no_grad():
            constants[node] = node.target(*args, **kwargs)
    for n, (node, value) in enumerate(constants.items()):
        if isinstance(value, Tensor) and any(user not in constants for user in node.users):
            name = f"_folded_{n}"
            module.register_buffer(name, value, persistent=False)
            with module.graph.inserting_before(node):
                folded = module.graph.get_attr(name)
            folded.meta = node.meta
            node.replace_all_uses_with(folded)


def _empty(value: Any) -> Tensor:
    """Memory like that of a node's value."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _flat(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _merge(graph: fx.Graph, written: set[fx.Node]) -> None:
    """Drop operations without effect, and compute only once what is computed twice."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            key: Any = node.target
        elif _is_pure(node, written):
            if (same := _same(node)) is not None:
                node.replace_all_uses_with(same)
                continue
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        else:
            continue
        if (twin := seen.setdefault(key, node)) is not node:
            node.replace_all_uses_with(twin)


def _same(node: fx.Node) -> Any:
    """The argument that a node is identical to, if there is one."""
    argument = node.args[0] if node.args else None
    if not isinstance(argument, fx.Node):
        return None
    if node.target in {aten.alias.default, aten.detach.default}:
        return argument
    before, after = _value(argument), _value(node)
    if node.target in {aten.expand.default, aten.view.default, aten._unsafe_view.default}:
        same = before.shape == after.shape and before.stride() == after.stride()
        return argument if same else None
    if node.target is aten.t.default and argument.target is aten.t.default:
        return argument.args[0]
    return None


def _hashable(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    # 1, 1.0 and True are equal but different arguments; NaN is the same argument but not equal.
    return (type(value), repr(value) if isinstance(value, float) else value)


def _keep(module: fx.GraphModule, written: set[fx.Node]) -> None:
    """Give large results memory that is kept, if the operation can write into it."""
    for n, node in enumerate(list(_operations(module.graph))):
        value = _value(node)
        if node in written or not isinstance(value, Tensor) or value.device.type != "cpu":
            continue
        if value.numel() * value.element_size() < KEPT_BYTES or not _is_dense(value):
            continue
        target, args = node.target, node.args
        if target is aten.relu.default:
            # The same operation, which has a variant that writes into given memory.
            target, args = aten.clamp_min.default, (*args, 0)
        into, name = _into(target)
        if into is None:
            continue
        memory_name = f"_kept_{n}"
        module.register_buffer(memory_name, _empty(value), persistent=False)
        with module.graph.inserting_before(node):
            memory = module.graph.get_attr(memory_name)
            new = module.graph.call_function(into, args, {**node.kwargs, name: memory})
        new.meta = node.meta
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)


def _is_dense(value: Tensor) -> bool:
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return last or value.is_contiguous()


def _into(target: Any) -> tuple[OpOverload | None, str]:
    """The variant of an operation that writes into given memory, and the name of that argument."""
    if not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags:
        wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
        packet = target.overloadpacket
        for overload in (getattr(packet, name) for name in packet.overloads()):
            *arguments, last = overload._schema.arguments
            writes = last.alias_info is not None and last.alias_info.is_write and last.kwarg_only
            # Variants that are generated from the plain operation copy its result.
            generated = torch.Tag.generated in overload.tags
            if (
                writes
                and not generated
                and [(a.name, str(a.type)) for a in arguments] == wanted
                and len(overload._schema.returns) == 1
            ):
                return overload, last.name
    return None, ""
