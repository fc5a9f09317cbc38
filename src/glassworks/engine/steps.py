"""One iteration's computing: the packed (or padded) step of all that share it, then the passes of what runs by itself.

It is told who runs and computes; it decides nothing, and hands nothing on: what came, and what failed, is the answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from glassworks.engine.work import AloneWork, PackedWork, Work
from glassworks.errors import ModelError
from glassworks.memory.kv import KVStore
from glassworks.run.joined import Decoded, JoinedRuntime, Row
from glassworks.run.packing import PackedRuntime, Part, Returned
from glassworks.schedule.base import Job, Place

Parts = Sequence[tuple[PackedWork, Part, bool]]
"""Requests with their share of a step, and whether it ends a step of their generation."""


@dataclass(slots=True)
class Computed:
    """What an iteration computed.

    Attributes:
        ran: who took part. context_tokens, prefill_tokens: what they attended to, and how much of prompts there was.
        came: whose step has ended, with the logits that its token was chosen from. failed: what ended whom.
        steps, alone_steps: forward passes. rows: of the former together. shared_tokens: taken over from others.
        company: of those that failed, who failed because the pass that they shared did.
        tokens: how many each computed in a pass that it shared. own_s: seconds of passes and nodes of its own.
        interrupted: what came from outside (a key that was pressed) while a step ran, to be raised once all is told.
    """

    ran: list[Job] = field(default_factory=list)
    context_tokens: int = 0
    prefill_tokens: int = 0
    came: list[tuple[Work, torch.Tensor | None]] = field(default_factory=list)
    failed: list[tuple[Work, Exception]] = field(default_factory=list)
    steps: int = 0
    rows: int = 0
    alone_steps: int = 0
    company: set[Work] = field(default_factory=set)
    tokens: dict[Work, int] = field(default_factory=dict)
    own_s: dict[Work, float] = field(default_factory=dict)
    shared_tokens: dict[Work, int] = field(default_factory=dict)
    interrupted: BaseException | None = None

    @property
    def told(self) -> set[Work]:
        """Those of whom it is known what came."""
        return {work for work, _ in (*self.came, *self.failed)}

    def shares(self, seconds: float) -> dict[Work, float]:
        """So many seconds of an iteration, divided among those who took part: what was their own, and of the rest by
        tokens."""
        tokens, rest_s = sum(self.tokens.values()), max(0.0, seconds - sum(self.own_s.values()))
        parts = dict(self.own_s)
        for work, count in self.tokens.items():
            parts[work] = parts.get(work, 0.0) + rest_s * count / tokens
        whole_s = sum(parts.values())  # more than there are, where nodes were timed by another clock
        return {work: seconds * part_s / whole_s for work, part_s in parts.items()} if whole_s else {}


def compute(
    run: Sequence[tuple[Job, int]], works: Mapping[Job, Work], packed: PackedRuntime | JoinedRuntime | None,
    store: KVStore | None, *, share: bool, by_itself: Callable[[Work | None], None], timer: Callable[[], float],
) -> Computed:  # fmt: skip
    """Compute so many tokens of each job. One whose blocks are on their way, or are not to be had, is left out.

    Args:
        share: whether requests take over beginnings that others have computed.
        by_itself: is told whose own pass begins, and None when it has ended. timer: gives seconds.
    """
    found = Computed()
    parts: list[tuple[PackedWork, Part, bool]] = []
    alone: list[AloneWork] = []
    for job, count in run:
        work = works[job]
        if job.place not in (Place.NOWHERE, Place.DEVICE):
            continue
        context, tokens = job.computed_tokens, job.pending_tokens
        try:
            if isinstance(work, PackedWork):
                if share and (shared := work.adopt()):
                    found.shared_tokens[work] = shared
                made = work.part(count)
                if made is None:
                    continue
                parts.append((work, *made))
                tokens = len(made[0].ids)
            elif isinstance(work, AloneWork):
                if not work.start():
                    continue
                alone.append(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
            found.failed.append((work, error))
            continue
        found.ran.append(job)
        found.tokens[work] = tokens
        found.context_tokens += context
        found.prefill_tokens += tokens if tokens > 1 else 0
    if parts and isinstance(packed, PackedRuntime) and store is not None:
        _packed_step(parts, packed, store, found)
    joining = [own for own in alone if own.can_join] if isinstance(packed, JoinedRuntime) else []
    if len(joining) > 1 and isinstance(packed, JoinedRuntime):
        alone = [own for own in alone if own not in joining]
        _joined_step(joining, packed, found)
    for own in alone:
        if found.interrupted is not None:
            found.ran.remove(own.job)
        else:
            by_itself(own)
            began = timer()
            _alone_step(own, found)
            found.own_s[own] = timer() - began
        del found.tokens[own]
    if alone:
        by_itself(None)
    return found


def broken_off(error: BaseException) -> ModelError:
    """What ends a request whose nodes may have run in something that was broken off: they never run twice."""
    return ModelError(f"the step was broken off ({type(error).__name__}), and what it had begun cannot be repeated")


def _packed_step(parts: Parts, packed: PackedRuntime, store: KVStore, found: Computed) -> None:
    works = [work for work, _, _ in parts]
    before = [work.table.tokens for work in works]
    try:
        with _timed(works, found):
            returned = packed.step([part for _, part, _ in parts], store)
        found.steps, found.rows = found.steps + 1, found.rows + len(parts)
        _take(parts, returned, found)
    except Exception as error:  # noqa: BLE001 - the model itself failed
        _fail_all(works, error, found)
    except BaseException as error:  # noqa: BLE001 - kept, and raised by the engine
        told = found.told
        undone: dict[Work, bool] = {
            work: work.undo(part, tokens, ends=ends)
            for (work, part, ends), tokens in zip(parts, before, strict=True) if work not in told
        }  # fmt: skip
        _broken_off(undone, error, found)


def _take(parts: Parts, returned: Returned, found: Computed) -> None:
    """Choose the tokens of all whose step has ended."""
    failures = dict(returned.failures)
    chosen = _chosen(parts, returned.logits, failures)
    for k, (work, _, ends) in enumerate(parts):
        if ends and k not in failures:
            try:
                work.took(chosen.get(k))
                found.came.append((work, None if returned.logits is None else returned.logits[k]))
            except Exception as error:  # noqa: BLE001
                failures[k] = error
    found.failed += [(parts[k][0], error) for k, error in failures.items()]


@contextmanager
def _timed(works: Sequence[Work], found: Computed) -> Iterator[None]:
    """Count what the nodes of each take in a pass that they share."""
    before = [work.run.frame.spent_s for work in works]
    try:
        yield
    finally:
        for work, spent_s in zip(works, before, strict=True):
            if work.run.frame.spent_s != spent_s:
                found.own_s[work] = work.run.frame.spent_s - spent_s


def _fail_all(works: Sequence[Work], error: Exception, found: Computed) -> None:
    """The model failed in a pass: of several that shared it nobody knows whose it was."""
    told = found.told
    found.failed += [(work, error) for work in works if work not in told]
    if len(works) > 1:
        found.company.update(works)


def _broken_off(undone: Mapping[Work, bool], error: BaseException, found: Computed) -> None:
    """A step was broken off: it begins again, but for requests that could not undo it. Those end."""
    found.interrupted = error
    found.failed += [(work, broken_off(error)) for work, could in undone.items() if not could]


def _chosen(parts: Parts, logits: Sequence[torch.Tensor] | None, failures: dict[int, Exception]) -> dict[int, int]:
    """The next token of each part that has one: those that only ask for the likeliest together."""
    wanted = [k for k, (work, _, ends) in enumerate(parts) if ends and work.rows.samples and k not in failures]
    if logits is None or not wanted:
        return {}
    plain = [k for k in wanted if parts[k][0].rows.sampler.is_argmax]
    chosen: dict[int, int] = {}
    if plain:
        last = torch.stack([logits[k][-1] for k in plain])
        chosen.update(zip(plain, last.float().argmax(-1).tolist(), strict=True))
    for k in wanted:
        if k not in chosen:
            try:
                [chosen[k]] = parts[k][0].rows.chosen(logits[k][-1:])
            except Exception as error:  # noqa: BLE001
                failures[k] = error
    return chosen


def _joined_step(works: Sequence[AloneWork], joined: JoinedRuntime, found: Computed) -> None:
    begun: dict[AloneWork, Row] = {}
    for work in works:
        try:
            begun[work] = work.row()
        except Exception as error:  # noqa: BLE001
            found.failed.append((work, error))
    try:
        with _timed(list(begun), found):
            decoded = joined.step(list(begun.values()))
        found.steps, found.rows = found.steps + 1, found.rows + len(begun)
        _take_joined(list(begun), decoded, found)
    except Exception as error:  # noqa: BLE001 - the model itself failed
        _fail_all(list(begun), error, found)
    except BaseException as error:  # noqa: BLE001 - kept, and raised by the engine
        told = found.told
        _broken_off({work: work.undo(row) for work, row in begun.items() if work not in told}, error, found)


def _take_joined(works: Sequence[AloneWork], decoded: Decoded, found: Computed) -> None:
    assert decoded.logits is not None
    for k, work in enumerate(works):
        try:
            if k in decoded.failures:
                raise decoded.failures[k]
            work.took(decoded.logits[k])
            found.came.append((work, work.logits))
        except Exception as error:  # noqa: BLE001
            found.failed.append((work, error))


def _alone_step(work: AloneWork, found: Computed) -> None:
    try:
        work.step()
        found.alone_steps += 1
        found.came.append((work, work.logits))
    except Exception as error:  # noqa: BLE001
        found.failed.append((work, error))
    except BaseException as error:  # noqa: BLE001 - kept, and raised by the engine
        _broken_off({work: False}, error, found)
