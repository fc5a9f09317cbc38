"""A graph: frozen nodes, the tensors that they captured, and where each was written.

Equality and hash concern what the graph does: nodes and the values of its constants, not files and lines.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from glassworks.errors import GraphError, WireError
from glassworks.graph import codec, text, wire
from glassworks.graph.nodes import AnyLine, Node
from glassworks.graph.sites import module_of_operation

_STRUCTURE = itemgetter(0, 1, 4, 5, 6, 7)
"""Of a node: kind, target, deps, invoke, steps, when."""


@dataclass(frozen=True, eq=False)
class Graph:
    """An experiment as data.

    Attributes:
        nodes: in the order they were written; a node refers to earlier ones.
        lines: where each node was written, or None.
        constants: captured tensors; each has `dtype`, `shape` and `blob()`.
        invokes: how many groups of rows the experiment has (prompts are not part of it).
        seed: of its random nodes.
        functions: of the author's, which `gw.apply` runs; a graph with any stays in its process.
    """

    nodes: tuple[Node, ...]
    lines: tuple[AnyLine | None, ...] = ()
    constants: tuple[wire.Constant, ...] = ()
    invokes: int = 1
    seed: int = 0
    functions: tuple[Callable[..., Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.lines:
            object.__setattr__(self, "lines", (None,) * len(self.nodes))

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def saves(self) -> tuple[str, ...]:
        """Names of what the graph keeps, in the order written."""
        return tuple(node.target for node in self.nodes if node.kind == "save")

    @property
    def structure(self) -> tuple[Any, ...]:
        """What placement depends on: the nodes less their arguments. Cheap, and equal for equal shapes of graph."""
        return tuple(map(_STRUCTURE, self.nodes))

    @property
    def within(self) -> frozenset[str]:
        """Native paths of the modules whose own operations the graph names as sites."""
        paths = {module_of_operation(node.target) for node in self.nodes if node.kind in ("read", "write", "skip")}
        return frozenset(path for path in paths if path is not None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what the graph does."""
        own = json.dumps([codec.VERSION, self.invokes, self.seed, [codec.node_to_json(n) for n in self.nodes]])
        captured = [wire.digest(constant.blob()) for constant in self.constants]
        captured += [str(id(function)) for function in self.functions]
        return hashlib.sha256("\n".join([own, *captured]).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return text.render(self)

    def where(self, node: int) -> str:
        """`file:line` of a node, or its number where no line is known."""
        line = self.lines[node]
        return str(line) if line is not None else f"node {node}"

    def to_message(self) -> tuple[dict[str, Any], dict[str, wire.Blob]]:
        """The graph as JSON values and tensors by name, for `wire.pack`.

        Raises:
            GraphError: it holds a function of the author's; names it and its line.
        """
        for n, node in enumerate(self.nodes):
            if node.kind in ("apply", "effect"):
                raise GraphError(
                    f"gw.apply({node.target}) runs your own code, which stays in this process: a graph that holds it "
                    f"cannot be stored or sent. Write it with torch's functions, or run it on a local model\n"
                    f"  at {self.where(n)}"
                )
        message = {
            "version": codec.VERSION,
            "invokes": self.invokes,
            "seed": self.seed,
            "nodes": codec.nodes_to_json(self.nodes, self.lines),
            "constants": len(self.constants),
        }
        return message, {f"constant.{k}": constant.blob() for k, constant in enumerate(self.constants)}

    @classmethod
    def from_message(cls, message: Any, blobs: dict[str, wire.Blob]) -> "Graph":
        """The inverse of `to_message`. Raises WireError."""
        fields = {"version", "invokes", "seed", "nodes", "constants"}
        if not isinstance(message, dict) or set(message) != fields or not isinstance(message["nodes"], list):
            raise WireError(f"a graph must have the fields {', '.join(sorted(fields))}")
        if message["version"] != codec.VERSION:
            raise WireError(f"a graph of version {wire.spell(message['version'])}; this side reads {codec.VERSION}")
        counts = [message["invokes"], message["seed"], message["constants"]]
        if any(type(count) is not int or not 0 <= count < 2**63 for count in counts):
            raise WireError("invokes, seed and constants must be numbers")
        read = [codec.node_from_json(value, position) for position, value in enumerate(message["nodes"])]
        constants = []
        for k in range(message["constants"]):
            if f"constant.{k}" not in blobs:
                raise WireError(f"constant {k} is missing among the tensors")
            constants.append(blobs[f"constant.{k}"])
        for position, (node, _) in enumerate(read):
            own = node.args[0] if len(node.args) == 1 else None
            if node.kind == "constant" and not (type(own) is int and 0 <= own < len(constants)):
                raise WireError(f"node {position}: no such constant: {node.args}")
        nodes, lines = tuple(node for node, _ in read), tuple(line for _, line in read)
        return cls(nodes, lines, tuple(constants), message["invokes"], message["seed"])

    def encode(self) -> bytes:
        """The bytes of a `.safetensors` file that holds the graph."""
        return wire.pack({"graph": (own := self.to_message())[0]}, own[1])

    @classmethod
    def decode(cls, data: bytes) -> "Graph":
        """The inverse of `encode`. Raises WireError."""
        message, blobs = wire.unpack(data)
        if set(message) != {"graph"}:
            raise WireError(f"expected a graph, got a message with {sorted(message)}")
        return cls.from_message(message["graph"], blobs)

    def save(self, path: str | Path) -> None:
        """Write the graph to a file; by convention its name ends in `.safetensors`."""
        Path(path).write_bytes(self.encode())

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """Read a graph that `save` wrote. Raises WireError, OSError."""
        return cls.decode(Path(path).read_bytes())
