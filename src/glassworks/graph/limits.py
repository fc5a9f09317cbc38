"""What one request to a service may ask for, and the words for one that asks for more."""

from dataclasses import dataclass, fields

from glassworks.errors import InputError, LimitExceeded

TEXT_CHARACTERS = 64
"""Fewer than so many in any text among arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for.

    Attributes:
        body_bytes: the request as it travels.
        experiments: runs in one request.
        nodes: of all graphs together.
        constants_bytes: captured tensors and tensors among the inputs, together, each once.
        rows: of one experiment, over its invokes.
        tokens_per_row: of a prompt.
        tokens: of one experiment's prompts together.
        max_new_tokens: a row.
        result_bytes: the saves of all experiments together.
        backwards: derivatives taken in one request.
        node_flops: floating-point operations of one run of a node.
        node_bytes: what one run of a node allocates.
        request_flops: of all runs of all nodes.
        request_bytes: allocated by all runs of all nodes, one after the other.
        held_bytes: of the values that are alive at once in one experiment.
        run_s: seconds of compute of one job.
        check_s: how long checking may take.
        check_bytes: memory that checking may take.
    """

    body_bytes: int = 256 * 2**20
    experiments: int = 1024
    nodes: int = 20_000
    constants_bytes: int = 192 * 2**20
    rows: int = 1024
    tokens_per_row: int = 8192
    tokens: int = 2**18
    max_new_tokens: int = 1024
    result_bytes: int = 256 * 2**20
    backwards: int = 64
    node_flops: int = 2**44
    node_bytes: int = 2**31
    request_flops: int = 2**48
    request_bytes: int = 2**38
    held_bytes: int = 2**33
    run_s: int = 600
    check_s: int = 20
    check_bytes: int = 2**30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise InputError(f"the limit {field.name} must be a positive int, got {value!r}")


def within(limit: str, given: int, allowed: int, advice: str) -> None:
    """LimitExceeded: names the limit and both figures."""
    if given > allowed:
        raise LimitExceeded(f"{limit}: {given} asked for, {allowed} allowed; {advice}")


def check_text(text: str, where: str, limit: int = TEXT_CHARACTERS) -> None:
    """LimitExceeded: a text among arguments is too long to be an argument."""
    if len(text) >= limit:
        raise LimitExceeded(f"text in arguments ({where}): {len(text)} characters, fewer than {limit} allowed")
