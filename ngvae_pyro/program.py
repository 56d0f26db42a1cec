"""A function of tensors as a flat list of its tensor operations: recorded once, replayed often.

A small VAE pays more for Python, Pyro's handlers and autograd's graph than for its arithmetic, and
on every step for the same ones: the operations are those of the step before. :class:`Program`
writes them down on one call, backward pass included, and plays them back without anything that led
to them. What it plays back are the same kernels with the same arguments, so the numbers are the
same to the last bit, and random ones are drawn anew from the same generator.

Recording freezes whatever is not a tensor operation: a Python number, a branch taken. What changes
from call to call must be an input, or a tensor that is written to in place, as parameters and
buffers are; a value that is read back (``tensor.item()``, ``if tensor:``) cannot be recorded, and
:class:`NotRecordable` says so.
"""

import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

# Results of at least so many bytes get memory of their own that is kept from call to call. From
# about this size on a C library hands memory back to the system, which then clears every page of
# it again: on two cores of an EPYC virtual machine that was half the time of a step.
KEPT_BYTES = 2**16

# Constants up to so many numbers are computed once.
FOLDED_NUMEL = 2**16

# Operations that read nothing of a tensor but its shape, type and device.
_SHAPE_ONLY = {
    aten.new_full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
}
# What makes a tensor of a Python number, such as the 1.0 of Normal(loc, 1.0).
_FROM_PYTHON = {aten.lift_fresh.default, aten.lift_fresh_copy.default}
# Views that their schemas do not declare.
_VIEWS = {aten._unsafe_view.default, aten._reshape_alias.default}


class NotRecordable(RuntimeError):
    """A function that does more than compute with tensors; the message is what it does."""


class Program:
    """The operations of ``function`` at some inputs, to be replayed at others of their shapes.

    Args:
        function: Takes the inputs, returns a tuple of tensors (or None). It is called once, and
            draws random numbers as on any other call.
        inputs: What it is recorded at.

    Raises:
        NotRecordable: If it reads the value of a tensor back into Python, or makes a tensor whose
            size depends on values.
    """

    def __init__(self, function: Callable[..., tuple[Tensor | None, ...]], *inputs: Tensor) -> None:
        try:
            # In one thread: autograd's own threads would not be recorded.
            with torch.autograd.set_multithreading_enabled(False):
                self.module = make_fx(lambda *values: function(*values))(*inputs)
        except RuntimeError as error:
            # The only error that recording adds; all others are those of the function itself.
            if "tracing tensor" not in str(error):
                raise
            raise NotRecordable(f"{_where(error)} reads the value of a tensor") from error
        graph = self.module.graph
        for node in graph.nodes:
            if node.op == "get_attr":
                # Older versions of torch do not say of what shape they are.
                node.meta.setdefault("val", getattr(self.module, node.target))
        for node in _operations(graph):
            if _has_any_size(node):
                raise NotRecordable(f"{node.target} makes a tensor whose size depends on values")
        written = _written(self.module)
        _fold(self.module, written)
        _merge(graph, written)
        _keep(self.module, written)
        graph.eliminate_dead_code(_acts)
        self.module.recompile()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """What the function returns; valid until the next call, which writes to the same memory."""
        with torch.no_grad():
            return self.module(*inputs)

    @property
    def transfers(self) -> list[str]:
        """Operations that copy between devices, which a CUDA graph cannot do."""
        found = []
        for node in _operations(self.module.graph):
            values = [_value(other) for other in (node, *node.all_input_nodes)]
            tensors = [v for value in values for v in _flat(value) if isinstance(v, Tensor)]
            # A number on the CPU is an argument of the kernel.
            if len({v.device for v in tensors if v.dim() or v is values[0]}) > 1:
                found.append(str(node.target))
        return found

    def __len__(self) -> int:
        """How many operations there are."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)


def _where(error: BaseException) -> str:
    """File and line of what an error comes from, leaving out the libraries that it went through."""
    libraries = [library.__path__[0] for library in (torch, pyro)]
    place = "the function"
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not any(file.startswith(library) for library in libraries):
            place = f"{Path(file).name}:{line}"
    return place


def _operations(graph: fx.Graph) -> Iterable[fx.Node]:
    return (node for node in graph.nodes if isinstance(node.target, OpOverload))


def _acts(node: fx.Node) -> bool:
    """Whether the node does more than give a result: writes, or moves on a random generator."""
    target = node.target
    if not isinstance(target, OpOverload):
        return node.op in ("placeholder", "output")
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


def _has_any_size(node: fx.Node) -> bool:
    """Whether the size of a result depends on the values that it is made of."""
    target: Any = node.target
    if target is aten.index.Tensor:
        # By a mask, not by positions.
        indices: Any = node.args[1]
        types = [_value(index).dtype for index in indices if index is not None]
        return torch.bool in types or torch.uint8 in types
    return torch.Tag.dynamic_output_shape in target.tags


def _value(node: fx.Node) -> Any:
    """A tensor without data, of the node's shape, strides, type and device."""
    return node.meta.get("val")


def _written(module: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose memory is written to after they were made, or that are views of such."""
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
    """Whether the node gives the same result for the same arguments, wherever it stands."""
    target = node.target
    if not isinstance(target, OpOverload):
        return node.op == "call_function" and node not in written
    random = torch.Tag.nondeterministic_seeded in target.tags
    touched = node in written or any(arg in written for arg in node.all_input_nodes)
    return not (random or touched or target._schema.is_mutable)


def _fold(module: fx.GraphModule, written: set[fx.Node]) -> None:
    """Compute once what depends on no input, parameter or buffer."""
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
    """Drop what changes nothing and compute what is computed twice only once."""
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
    """The argument that a node is no different from."""
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
    # 1, 1.0 and True are equal, and not the same argument.
    return (type(value), value)


def _keep(module: fx.GraphModule, written: set[fx.Node]) -> None:
    """Give large results memory that stays, where the operation can write into it."""
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
    """The variant of an operation that writes into given memory, and how that is called there."""
    if not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags:
        wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
        packet = target.overloadpacket
        for overload in (getattr(packet, name) for name in packet.overloads()):
            *arguments, last = overload._schema.arguments
            writes = last.alias_info is not None and last.alias_info.is_write and last.kwarg_only
            # Those that are generated from the plain operation copy its result.
            generated = torch.Tag.generated in overload.tags
            if (
                writes
                and not generated
                and [(a.name, str(a.type)) for a in arguments] == wanted
                and len(overload._schema.returns) == 1
            ):
                return overload, last.name
    return None, ""
