"""Read pickles as data, with a small stack machine that handles containers and numbers and cannot import or call code.

A pickle is a program. Python's own unpickler resolves the names in it to real objects and calls them. Restricting it
still leaves real functions, classes and attributes within its reach. This machine resolves a name to a
:class:`GlobalName`, a pair of strings, and "calls" only functions from a table supplied by the caller.
Instances of known classes become :class:`PickledObject`: a class path and a state, nothing more.

The number of instructions, the amount of copied data and the nesting depth are bounded, and with them the memory.
"""

from __future__ import annotations

import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_INSTRUCTIONS = 500_000  # a whole pickled generator has 5,000; each instruction makes at most a few hundred bytes
MAX_COPIED = 4_000_000  # total entries that calls and states may copy; otherwise copies of copies could exhaust memory
MAX_DEPTH = 100
MAX_INTEGER_BITS = 1024  # longer ones are slow to hash and to print

_PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocol 2, which torch uses, keeps Python 2's names
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SCALARS = (str, int, float, bytes, type(None))


class PickleRefused(Exception):
    """The pickle requests an operation that this reader does not support. The message completes "this file ..."."""


@dataclass(frozen=True)
class GlobalName:
    """A global name in the pickle. It is never resolved to an object."""

    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class PickledObject:
    """An instance of a class that was not imported: its class path and its state."""

    class_path: str
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        return self.class_path.rpartition(".")[2]


@dataclass(frozen=True)
class Vocabulary:
    """Global names that a pickle may contain.

    calls: path -> our own function, which receives the pickled arguments and must validate them.
    constants: path -> value (for example torch dtypes).
    tags: names that are kept as names (storage types).
    is_known_class: (module, name) -> True if instances become :class:`PickledObject`.
    """

    calls: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    is_known_class: Callable[[str, str], bool] = lambda module, name: False

    def resolve(self, module: str, name: str) -> Any:
        """Return the replacement for a global. Raises PickleRefused if it is unknown."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleRefused("has a class name that is not a string; refused")
        module = _PYTHON2_MODULES.get(module, module)
        path = f"{module}.{name}"
        if path in self.constants:
            return self.constants[path]
        if path in self.calls or path in self.tags:
            return GlobalName(module, name)
        if _IDENTIFIER.fullmatch(name) and self.is_known_class(module, name):
            return GlobalName(module, name)
        raise PickleRefused(f"asks to run {printable(path)}; refused")


def printable(text: object, limit: int = 120) -> str:
    """Escape text from an untrusted file for a one-line message: ASCII, no control characters, at most ``limit`` long."""
    shown = ascii(str(text))[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def read_pickle(stream: BinaryIO, vocabulary: Vocabulary, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle from ``stream``, up to its end, and return plain containers, scalars and replacements.

    stream: must not allocate more bytes than it has, whatever size is requested (io.BytesIO does not).
    persistent_load: turns a persistent id into a value; without it, such ids are rejected.
    Raises PickleRefused; ValueError or another plain exception if the bytes are not a pickle.
    """
    machine = _Machine(vocabulary, persistent_load)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MAX_INSTRUCTIONS:
            raise PickleRefused(f"has a pickle of more than {MAX_INSTRUCTIONS} instructions; refused")
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    result = machine.pop()
    _check_nesting(result)
    return result


def _check_nesting(root: Any) -> None:
    """Reject cycles and deep nesting, so that the result can be traversed recursively."""
    height: dict[int, int] = {}  # id -> levels of containers, including itself
    open_ids: set[int] = set()
    stack = [(root, False)]
    while stack:
        value, is_done = stack.pop()
        if id(value) in height:
            continue
        children = _children(value)
        if is_done:
            open_ids.discard(id(value))
            height[id(value)] = 1 + max((height.get(id(child), 0) for child in children), default=0)
            if height[id(value)] > MAX_DEPTH:
                raise PickleRefused(f"nests containers more than {MAX_DEPTH} deep; refused")
        elif children:
            if id(value) in open_ids:
                raise PickleRefused("holds a container that contains itself; refused")
            open_ids.add(id(value))
            stack.append((value, True))
            stack.extend((child, False) for child in children)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, PickledObject):
        return [value.state]
    return []


def checked_key(key: Any) -> Any:
    """Validate a dictionary key or set member. Only scalars: hashing a tuple nested a million deep crashes the process."""
    if not isinstance(key, _SCALARS):
        raise PickleRefused(f"uses a {type(key).__name__} as a dictionary key or set member; refused")
    return key


_LITERALS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING")
    + ("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
)
_MEMO_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_MEMO_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_SMALL_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_SINGLETONS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Machine:
    """Stack machine with the stack, marks and memo of one pickle."""

    def __init__(self, vocabulary: Vocabulary, persistent_load: Callable[[Any], Any] | None) -> None:
        self.vocabulary = vocabulary
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.num_copied = 0

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("the pickle pops from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def account_for(self, value: Any) -> None:
        """Add the entries that are about to be copied to the total. Raises PickleRefused beyond MAX_COPIED."""
        if isinstance(value, (str, bytes, list, tuple, dict, set, frozenset)):
            self.num_copied += len(value)
            if self.num_copied > MAX_COPIED:
                raise PickleRefused("copies too much data inside its pickle; refused")

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction. Instructions that are not listed here are rejected."""
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise PickleRefused(f"contains an integer of more than {MAX_INTEGER_BITS} bits; refused")
            self.stack.append(argument)
        elif name in _SINGLETONS:
            self.stack.append(_SINGLETONS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _SMALL_TUPLES:
            items = [self.pop() for _ in range(_SMALL_TUPLES[name])]
            self.stack.append(tuple(reversed(items)))
        elif name in _MEMO_PUT:
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in _MEMO_GET:
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):  # these two have no effect here
            handler = _HANDLERS.get(name)
            if handler is None:
                raise PickleRefused(f"uses the pickle instruction {name}, which saved weights do not need; refused")
            handler(self, argument)

    def make_dict(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise PickleRefused(f"appends to a {type(target).__name__}; refused")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedDict):
            raise PickleRefused(f"sets items of a {type(target).__name__}; refused")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def add_items(self, _: Any) -> None:
        items = self.pop_to_mark()
        target = self.top()
        if type(target) is not set:
            raise PickleRefused(f"adds members to a {type(target).__name__}; refused")
        target.update(checked_key(item) for item in items)

    def named_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.vocabulary.resolve(module, name))

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(self.vocabulary.resolve(module, name))

    def inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.vocabulary.resolve(module, name)  # raises an error that names the class, if it is unknown
        raise PickleRefused("uses the pickle instruction INST, which saved weights do not need; refused")

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, GlobalName):
            raise PickleRefused(f"asks to call a {type(function).__name__}; refused")
        if type(arguments) is not tuple:
            raise PickleRefused(f"asks to call {printable(function.path)} without a tuple of arguments; refused")
        if function.path not in self.vocabulary.calls:
            raise PickleRefused(f"asks to run {printable(function.path)}; refused")
        for argument in arguments:
            self.account_for(argument)
        self.stack.append(self.vocabulary.calls[function.path](*arguments))

    def new_object(self, _: Any) -> None:
        arguments, kind = self.pop(), self.pop()
        if not isinstance(kind, GlobalName) or not self.vocabulary.is_known_class(kind.module, kind.name):
            shown = kind.path if isinstance(kind, GlobalName) else type(kind).__name__
            raise PickleRefused(f"asks to create a {printable(shown)}; refused")
        if arguments != ():
            raise PickleRefused(f"asks to create a {printable(kind.path)} with arguments; refused")
        self.stack.append(PickledObject(kind.path))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if type(target) is OrderedDict:
            return  # a state dict's _metadata: version numbers of torch modules, not needed here
        if not isinstance(target, PickledObject):
            raise PickleRefused(f"asks to set the state of a {type(target).__name__}; refused")
        parts = state if type(state) is tuple else (state,)
        for part in parts:  # a tuple is (the instance's dictionary, its slots)
            if part is not None and type(part) not in (dict, OrderedDict):
                raise PickleRefused(f"gives a {printable(target.class_path)} a state that is not a dictionary; refused")
            self.account_for(part)
            target.state.update(part or {})

    def persistent_id(self, _: Any) -> None:
        if self.persistent_load is None:
            raise PickleRefused("refers to data outside its pickle; refused")
        self.stack.append(self.persistent_load(self.pop()))

    def discard(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "DICT": _Machine.make_dict,
    "FROZENSET": lambda machine, _: machine.stack.append(frozenset(map(checked_key, machine.pop_to_mark()))),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "ADDITEMS": _Machine.add_items,
    "GLOBAL": _Machine.named_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.inst,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
    "POP": _Machine.discard,
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
}
