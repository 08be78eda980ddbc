"""The pickle inside a torch file, read without the pickle module: nothing in it is ever called.

The opcodes are interpreted on inert values. A global is but a name. The few that tensors need are given a meaning here;
the objects that real training checkpoints hold beside their tensors, such as paths, NumPy scalars and classes of other
packages, become an `Opaque`, which has a name and nothing else. Whatever else the file wants, above all anything of the
standard library that runs code, is refused by name before anything is done with it.
"""

from __future__ import annotations

import pickletools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unmask.errors import CheckpointError

MAX_PROGRAM = 4 * 2**20
"""Bytes; that of a ViT-H with its optimizer has a twentieth."""

STORAGES: dict[str, np.dtype[Any] | None] = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": None,  # numpy has no such type
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_DTYPES = {
    "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16",
    "torch.int64", "torch.int32", "torch.int16", "torch.int8", "torch.uint8", "torch.bool",
}  # fmt: skip


class Namespace(dict[str, Any]):
    """An argparse.Namespace, as the attributes it had."""


@dataclass(frozen=True)
class Global:
    """`module.name`; stands for a class or function and cannot be called."""

    name: str


@dataclass(frozen=True)
class Opaque:
    """An object that was passed over: only what it was an instance of is known."""

    name: str


@dataclass(frozen=True)
class StorageRecord:
    """A run of numbers in another record of the file."""

    key: str
    dtype: np.dtype[Any] | None
    """None: bfloat16."""
    size: int
    """In elements, as claimed."""


@dataclass(frozen=True)
class TensorRecord:
    """A view of a storage, as claimed: nothing of it is checked yet. All in elements."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _PickleError(Exception):
    pass


def unpickle(program: bytes) -> Any:
    """The value a pickle describes, of dict, list, tuple, str, bytes, numbers, None, Namespace, Global, Opaque,
    TensorRecord.

    Raises CheckpointError naming what it wanted to call, or that it is malformed.
    """
    if len(program) > MAX_PROGRAM:
        raise CheckpointError(f"its pickle has {len(program)} bytes, more than any model needs")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.do(opcode.name, argument)
        raise _PickleError("ends too early")
    except _PickleError as error:
        raise CheckpointError(f"its pickle {error}") from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError("its pickle is malformed") from error


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> TensorRecord:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, StorageRecord) or any(type(number) is not int for number in numbers):
        raise _PickleError("describes a tensor that is none")
    return TensorRecord(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise _PickleError("describes a parameter that is none")
    return data


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "argparse.Namespace": Namespace,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
_NAMES = frozenset([*_CALLS, *STORAGES, *_DTYPES])

_OPAQUE = {
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"collections.{name}" for name in ("defaultdict", "Counter", "deque")),
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "complex", "slice", "range", "bytearray", "object", "dict", "list", "tuple",
                     "int", "float", "str", "bool", "bytes")
    ),
    *(
        f"numpy.{module}.multiarray.{name}"
        for module in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    "numpy.dtype", "numpy.ndarray",
    "_codecs.encode",  # bytes, as protocol 2 has them
    "functools.partial", "types.SimpleNamespace", "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "torch.device", "torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_wrapper_subclass", "torch._tensor._rebuild_from_type_v2",
}  # fmt: skip
"""Of the standard library, NumPy and PyTorch: what training checkpoints were seen to hold, all of it data."""
_CLASS = re.compile(r"_?[A-Z]\w*(\._?[A-Z]\w*)*")


def _is_opaque(module: str, name: str) -> bool:
    """Whether a global is known to be data, or by its capital letter a class of a package that is not Python's own."""
    if f"{module}.{name}" in _OPAQUE:
        return True
    root = module.partition(".")[0]
    return root not in sys.stdlib_module_names and _CLASS.fullmatch(name) is not None


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Opaque("builtins.set"),
}
_MARK = object()
_KEYS = (str, int, float, bool, type(None), Opaque)


class _Machine:
    """The stack and memo of the pickle machine (the opcodes are documented in pickletools)."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case _ if opcode in _LITERALS:
                stack.append(argument)
            case _ if opcode in _NEW:
                stack.append(_NEW[opcode]())
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(opcode[-1]))))
            case "LIST":
                stack.append(self.since_mark())
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS":
                self.extend(self.since_mark())
            case "DICT":
                items = self.since_mark()
                stack.append({})
                self.update(items)
            case "ADDITEMS":
                self.since_mark()
                self.of_set()
            case "FROZENSET":
                self.since_mark()
                stack.append(Opaque("builtins.frozenset"))
            case "SETITEM":
                self.update(self.pop(2))
            case "SETITEMS":
                self.update(self.since_mark())
            case "GLOBAL":
                self.name_global(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                self.name_global(*self.pop(2))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                self.call(*self.pop(2))
            case "NEWOBJ_EX":
                function, arguments, _ = self.pop(3)
                self.make_opaque(function, arguments)
            case "BUILD":
                self.build(stack.pop())
            case _:
                raise _PickleError(f"uses {opcode}, which no model needs")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _PickleError("takes what is not there")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def since_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Opaque:
            raise _PickleError("appends to what is no list")

    def update(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        target = self.stack[-1]
        if type(target) is Opaque:
            return
        # The hash of a tuple of tuples of … can take longer than the age of the universe.
        if type(target) is not dict or any(type(key) not in _KEYS for key in keys):
            raise _PickleError("sets an item of what is no dictionary of names or numbers")
        target.update(zip(keys, values, strict=True))

    def of_set(self) -> None:
        if type(self.stack[-1]) is not Opaque:
            raise _PickleError("adds to what is no set")

    def name_global(self, module: Any, name: Any) -> None:
        # Python 2's pickles and old torch say __builtin__ and the like; none of its functions is needed.
        full = f"{module}.{name}"
        if full not in _NAMES and not _is_opaque(str(module), str(name)):
            raise _PickleError(f"wants {' '.join(full.split())[:200]!r}, which is never called here")
        self.stack.append(Global(full))

    def call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Global) and function.name in _CALLS and type(arguments) is tuple:
            self.stack.append(_CALLS[function.name](*arguments))
        else:
            self.make_opaque(function, arguments)

    def make_opaque(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Global) or function.name in _NAMES or type(arguments) is not tuple:
            raise _PickleError("calls what is no function")
        self.stack.append(Opaque(function.name))

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if type(target) is Namespace and type(state) is dict and all(type(key) is str for key in state):
            target.update(state)
        # An OrderedDict's attributes (torch puts `_metadata` there) are dropped.
        elif type(target) not in (dict, Opaque):
            raise _PickleError("sets the state of an object")


def _storage(identity: Any) -> StorageRecord:
    match identity:
        # torch numbers its records; any other key may lead elsewhere.
        case ("storage", Global(name), str(key), str(), int(size)) if (
            name in STORAGES and key.isascii() and key.isdecimal() and size >= 0
        ):
            return StorageRecord(key, STORAGES[name], int(size))
        case ("storage", Global(name), *_) if name.startswith("torch.") and name not in _CALLS:
            raise _PickleError(f"has tensors of type {name}, which is not supported")
        case _:
            pass
    raise _PickleError("refers to a storage that torch would not write")
