"""Requests made wrong in every way that bytes can be: from a number alone, so that each can be made again.

Knows the layout of a message (8 bytes of length, a JSON header, tensors) and the fields of a request, but uses none of
the code that reads them.
"""

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

KEY = "glassworks"


def mutated(seeds: Sequence[bytes], number: int) -> tuple[str, bytes]:
    """The name of what was done, and the bytes. Some numbers do two things, one after the other."""
    rng = random.Random(number)
    body = rng.choice(seeds)
    names = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(list(WAYS))
        try:
            body = WAYS[name](rng, body)
        except (Unreadable, IndexError, KeyError, TypeError, ValueError, AttributeError):  # no longer of that form
            name, body = "flip bits", flip_bits(rng, body)
        names.append(name)
    return " and ".join(names), body


class Unreadable(Exception):
    """What came is no message any more, and this way needs one."""


def parts(body: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header without metadata, message, data."""
    try:
        (size,) = struct.unpack("<Q", body[:8])
        header = json.loads(body[8 : 8 + size])
        return header, json.loads(header.pop("__metadata__")[KEY]), body[8 + size :]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        raise Unreadable from None


def whole(header: dict[str, Any], message: Any, data: bytes, *, text: str | None = None) -> bytes:
    """The inverse of `parts`; `text` stands in for the message's own."""
    own = json.dumps(message) if text is None else text
    head = json.dumps({"__metadata__": {KEY: own}, **header}).encode()
    return struct.pack("<Q", len(head)) + head + data


# Bytes.


def flip_bits(rng: random.Random, body: bytes) -> bytes:
    found = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if found:
            place = rng.randrange(min(len(found), rng.choice((8, 200, len(found)))))
            found[place] ^= 1 << rng.randrange(8)
    return bytes(found)


def cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def add_bytes(rng: random.Random, body: bytes) -> bytes:
    place = rng.choice((len(body), rng.randrange(len(body) + 1)))
    return body[:place] + rng.randbytes(rng.choice((1, 8, 100))) + body[place:]


def remove_bytes(rng: random.Random, body: bytes) -> bytes:
    place = rng.randrange(len(body) + 1)
    return body[:place] + body[place + rng.choice((1, 8, 100)) :]


def other_bytes(rng: random.Random, body: bytes) -> bytes:
    kinds = (
        b"",
        b"\x80\x04\x95" + body,
        b"PK\x03\x04" + body,
        rng.randbytes(200),
        b"\0" * 64,
        b"\xff" * 64,
        b"{}",
        b"[" * 5000,
    )
    return rng.choice(kinds)


def lie_about_the_header(rng: random.Random, body: bytes) -> bytes:
    size = rng.choice((0, 1, 7, len(body), len(body) - 8, len(body) - 7, 2**31, 2**32, 2**62, 2**63, 2**64 - 1))
    return struct.pack("<Q", max(size, 0)) + body[8:]


def not_text(rng: random.Random, body: bytes) -> bytes:
    """Bytes that are no UTF-8, inside the header."""
    (size,) = struct.unpack("<Q", body[:8].ljust(8, b"\0"))
    place = 8 + rng.randrange(max(1, min(size, len(body))))
    return (
        body[:place] + rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf")) + body[place + 1 :]
    )


# The header of the tensors.


def a_tensors_entry(rng: random.Random, body: bytes) -> bytes:
    header, message, data = parts(body)
    if not header:
        header["0"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    name = rng.choice(list(header))
    entry = copy.deepcopy(header[name])
    if not isinstance(entry, dict):
        raise Unreadable
    match rng.randrange(9):
        case 0:
            entry["dtype"] = rng.choice(("F32", "F64", "I64", "BOOL", "F99", "", None, 3, "F4", "C64", "U8", "BF16"))
        case 1:
            entry["shape"] = rng.choice(
                ([], [-1], [2**62], [2**31, 2**31], [0], "3", None, [1.5], [True], [1] * 100, {})
            )
        case 2:
            first, last = rng.choice(((-1, 3), (4, 0), (0, 2**62), (1, 2), (2**63, 2**63), (0, 0), (0, 1)))
            entry["data_offsets"] = [first, last]
        case 3:
            entry["data_offsets"] = rng.choice(([], [0], [0, 1, 2], "04", None, [0.0, 4.0], [True, 4]))
        case 4:
            entry[rng.choice(("extra", "__proto__", "dtype "))] = 1
        case 5:
            entry.pop(rng.choice(list(entry)))
        case 6:
            header[rng.choice(("another", "0", "1", "-1", "01", " 0", "__metadata__ ", "9" * 50))] = copy.deepcopy(
                entry
            )
        case 7:
            header.pop(name)
        case 8:
            entry = rng.choice((None, [], 3, "F32", {}, True))
    if name in header:
        header[name] = entry
    return whole(header, message, data)


def overlapping_tensors(rng: random.Random, body: bytes) -> bytes:
    header, message, data = parts(body)
    names = [name for name, entry in header.items() if isinstance(entry, dict) and "data_offsets" in entry]
    if len(names) < 2:
        raise Unreadable
    first, second = rng.sample(names, 2)
    header[first], header[second] = {**header[first]}, {**header[second]}
    which = rng.choice(("data_offsets", "shape", "dtype"))
    header[first][which] = header[second].get(which)
    return whole(header, message, data)


def a_large_header(rng: random.Random, body: bytes) -> bytes:
    header, message, data = parts(body)
    size = rng.choice((10**5, 10**6))
    match rng.randrange(4):
        case 0:
            return whole({**header, "x" * size: {}}, message, data)
        case 1:
            return whole(header, message, data, text=json.dumps(message) + " " * size)
        case 2:
            return whole({**header, **{str(k): {} for k in range(size // 100)}}, message, data)
    return whole(header, {**message, "padding": ["x"] * (size // 10)} if isinstance(message, dict) else message, data)


def metadata(rng: random.Random, body: bytes) -> bytes:
    header, _, data = parts(body)
    own = rng.choice((None, [], {}, {KEY: 3}, {KEY: None}, {KEY: ""}, {"other": "{}"}, {KEY: "null"}, {KEY: "[]"}, "x"))
    head = json.dumps({"__metadata__": own, **header} if rng.random() < 0.8 else header).encode()
    return struct.pack("<Q", len(head)) + head + data


# The text of the message.


def text_of_the_message(rng: random.Random, body: bytes) -> bytes:
    """What JSON forbids, or stretches: NaN, numbers without end, a field twice, depth."""
    header, message, data = parts(body)
    text = json.dumps(message)
    numbers = [k for k, letter in enumerate(text) if letter.isdigit() and not text[k - 1].isalnum()]
    match rng.randrange(7):
        case 0 if numbers:
            k = rng.choice(numbers)
            word = rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "1_000", "1.0", "-0", "true"))
            text = text[:k] + word + text[k + 1 :]
        case 1 if numbers:
            k = rng.choice(numbers)
            text = text[:k] + "9" * rng.choice((20, 400, 5000)) + text[k:]
        case 2:
            places = [k for k, letter in enumerate(text) if letter == "{"]
            k = rng.choice(places)
            end = text.find(",", k)
            if end > 0:
                text = text[: k + 1] + text[k + 1 : end] + "," + text[k + 1 :]
        case 3:
            text = "[" * 100_000 + text
        case 4:
            deep = '{"tuple": [' * 5000 + "]}" * 5000
            text = text.replace('"ids": [', f'"ids": {deep}, "was": [', 1)
        case 5:
            text = text + rng.choice(("}", "{}", "\0", ",", " //", "null"))
        case _:
            text = text[: rng.randrange(len(text))]
    return whole(header, message, data, text=text)


# The fields of the message.

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 1000, 10**9, 2**31, 2**53, 2**62, 2**63, -(2**63), 10**30, 1.5, "", "x", "NaN",
    "0x1p-3", "../../etc/passwd", "a" * 70, "\u0000", "\ud800", "system", "__class__", [], [[]], [1], {}, [None],
    {"ref": 0}, {"ref": 10**6}, {"ref": -1}, {"ref": 1.5}, {"float": "nan"}, {"float": "inf"}, {"float": "x"},
    {"leaf": 0}, {"leaf": 99}, {"leaf": -1}, {"dict": {}}, {"dtype": "float32"}, {"dtype": "float99"}, {"tuple": []},
    {"slice": [None, None, None]}, {"slice": [0, 0, 0]}, {"slice": []}, {"complex": ["0x0p+0", "nan"]}, {"unknown": 1},
    {"ref": 0, "float": "1"}, {"__reduce__": ["os.system", ["true"]]}, {"py/object": "os.system"}, {"ellipsis": True},
    {"tuple": [{"tuple": []}]},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    elif isinstance(value, list):
        for k, item in enumerate(value):
            found += places(item, (*path, k))
    return found


def at(message: Any, path: Sequence[Any]) -> Any:
    for key in path:
        message = message[key]
    return message


def a_field(rng: random.Random, body: bytes) -> bytes:
    """Any field of the message: another value, another name, gone, or twice."""
    header, message, data = parts(body)
    every = places(message)
    if not every:
        raise Unreadable
    path = rng.choice(every)
    owner, key = at(message, path[:-1]), path[-1]
    match rng.randrange(6):
        case 0 | 1 | 2:
            owner[key] = rng.choice(VALUES)
        case 3:
            del owner[key]
        case 4:
            owner[key] = copy.deepcopy(at(message, rng.choice(every)))
        case 5 if isinstance(owner, dict):
            owner[rng.choice(("extra", str(key) + "s", "Kind", ""))] = owner.pop(key)
        case _:
            owner.insert(key, copy.deepcopy(owner[key])) if isinstance(owner, list) else owner.update(extra=1)
    return whole(header, message, data)


KINDS = (
    "read", "write", "skip", "call", "update", "item", "module", "parameter", "constant", "input", "result", "backward",
    "grad", "grad_write", "save", "eval", "import", "", "READ", "cond", "apply", "effect", "log", "state", "carried",
    "carry", "stop",
)  # fmt: skip
CALLS = (
    "add", "matmul", "getitem", "setitem_", "repeat", "expand", "one_hot", "unique", "embedding", "to", "view", "topk",
    "split", "as_strided", "set_", "data", "numpy", "load", "__reduce__", "system", "exec", "resize_", "softmax", "cat",
    "normal", "rand_like", "bernoulli", "empty_like", "from_file", "linalg.svd", "special.expit", "masked_select",
    "clone", "add_", "einsum",
)  # fmt: skip


def a_node(rng: random.Random, body: bytes) -> bytes:
    """One node: its kind, target, arguments, keywords, rows, steps, line or place."""
    header, message, data = parts(body)
    try:
        experiment = rng.choice(message["request"]["experiments"])
        nodes = experiment["graph"]["nodes"]
        n = rng.randrange(len(nodes))
        node = nodes[n]
        args = node.setdefault("args", [])
        _change(rng, nodes, n, node, args)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        raise Unreadable from None
    return whole(header, message, data)


def _change(rng: random.Random, nodes: list[Any], n: int, node: dict[str, Any], args: list[Any]) -> None:
    match rng.randrange(14):
        case 13:
            node["when"] = rng.choice(
                ([[0, True]], [[n, True]], [[0, 1]], [], [[-1, False]], [[0, True]] * 20, {}, None)
            )
        case 0:
            node["kind"] = rng.choice(KINDS)
        case 1:
            node["target"] = rng.choice(
                (*CALLS, "logits", "layers.0.output", "nowhere.output", "", "unembed", "layers.9")
            )
        case 2:
            args.append(rng.choice(VALUES))
        case 3:
            args.pop(rng.randrange(len(args)))
        case 4:
            args[rng.randrange(len(args))] = rng.choice(VALUES)
        case 5:  # the references of two nodes, swapped
            other = rng.choice(nodes)
            node["args"], other["args"] = other.get("args", []), args
        case 6:
            args[rng.randrange(len(args))] = {"ref": rng.choice((n, n + 1, len(nodes), n - 1, 0, rng.randrange(n + 1)))}
        case 7:
            name = rng.choice(("out", "device", "generator", "dtype", "inplace", "dim", "max_norm", "x", "reduce", ""))
            node.setdefault("kwargs", {})[name] = rng.choice(VALUES)
        case 8:
            node["invoke"] = rng.choice((-2, -1, 0, 1, 2, 10**6, 2**70, 1.0, None, "0"))
        case 9:
            node["steps"] = rng.choice(
                ([0, 1], [0, None], [1, 0], [-1, 2], [0], [0, 2**70], None, "0:1", [5, 9], [1.0, 2])
            )
        case 10:
            node["line"] = rng.choice(
                (["a.py", 1], ["/etc/passwd", 1], ["x" * 300, 1], ["\n", 1], [1, "a"], None, ["a.py"])
            )
        case 11:
            nodes.insert(rng.randrange(len(nodes) + 1), nodes.pop(n))
        case 12:
            nodes.insert(n, copy.deepcopy(node))


def the_rows(rng: random.Random, body: bytes) -> bytes:
    """Tokens, rows, keywords and the generation."""
    header, message, data = parts(body)
    try:
        experiment = rng.choice(message["request"]["experiments"])
        inputs = experiment["inputs"]
        match rng.randrange(8):
            case 0:
                inputs["invokes"][0]["ids"] = rng.choice(
                    ([], [[]], [[-1]], [[10**9]], [[1] * 3000], [[1]] * 200, [["1"]], [1])
                )
            case 1:
                inputs["rows"] = rng.choice((0, -1, 1, 2, None, "1", 1.5, 2**70))
            case 2:
                inputs["invokes"].append(copy.deepcopy(rng.choice(inputs["invokes"])))
            case 3:
                inputs["invokes"].pop()
            case 4:
                name = rng.choice(
                    ("labels", "use_cache", "input_ids", "attention_mask", "trust_remote_code", "x", "return_dict")
                )
                inputs["invokes"][0]["kwargs"] = {"dict": {name: rng.choice(VALUES)}}
            case 5:
                options = {
                    rng.choice(("temperature", "do_sample", "custom_generate", "num_beams", "top_k")): rng.choice(
                        VALUES
                    )
                }
                experiment["generation"] = {
                    "max_new_tokens": rng.choice((0, 1, 3, -1, 10**9, 1.5)),
                    "options": {"dict": options},
                }
            case 6:
                experiment["links"] = {
                    rng.choice(("x", "")): rng.choice(([0, "s"], [-1, "s"], [9, "s"], ["s", 0], [0], None))
                }
            case 7:
                inputs["named"] = {"dict": {rng.choice(("x", "session.0.1")): rng.choice(VALUES)}}
    except (KeyError, TypeError, IndexError, AttributeError):
        raise Unreadable from None
    return whole(header, message, data)


def experiments(rng: random.Random, body: bytes) -> bytes:
    """The list of experiments: none, many, another order."""
    header, message, data = parts(body)
    try:
        own = message["request"]["experiments"]
        message["request"]["experiments"] = rng.choice(([], own * 3, own[::-1], own * 300, [own], {}, own + [None]))
        if rng.random() < 0.5:
            message["request"][rng.choice(("model", "version", "leaves", "large"))] = rng.choice(VALUES)
    except (KeyError, TypeError):
        raise Unreadable from None
    return whole(header, message, data)


Way = Callable[[random.Random, bytes], bytes]
WAYS: dict[str, Way] = {
    way.__name__.replace("_", " "): way
    for way in (
        flip_bits, cut, add_bytes, remove_bytes, other_bytes, lie_about_the_header, not_text, a_tensors_entry,
        overlapping_tensors, a_large_header, metadata, text_of_the_message, a_field, a_field, a_node, a_node, the_rows,
        experiments,
    )
}  # fmt: skip
