"""What came, on its way to whoever asked: tokens, stop texts, log probabilities, and how a request ended.

What a token spells is found out where somebody asks (`spelling`). When a reply ends its text is decoded as a whole.
"""

from collections.abc import Callable, Mapping

import torch

from glassworks.engine.requests import Reply, Timing
from glassworks.engine.spelling import Spelling
from glassworks.engine.work import PackedWork, Work
from glassworks.memory.arena import Arena
from glassworks.trace.prompts import Text


class Replies:
    """The replies that are under way.

    Args:
        text: the tokenizer, if there is one. frames: the arena in which saved values count; make_room: for so many
        bytes there. now_s: the clock.
    """

    def __init__(
        self, text: Text | None, frames: Arena, make_room: Callable[[int], None], now_s: Callable[[], float]
    ) -> None:
        self._text, self._frames, self._make_room, self._now_s = text, frames, make_room, now_s
        self._replies: dict[Work, Reply] = {}

    def __len__(self) -> int:
        return len(self._replies)

    def __contains__(self, work: Work) -> bool:
        return work in self._replies

    def add(self, work: Work, reply: Reply) -> None:
        """A request has come."""
        reply.begin(Spelling(self._text), work.run.frame.logs)
        self._replies[work] = reply

    def timing(self, work: Work) -> Timing:
        """When things happened to a request."""
        return self._replies[work].timing

    def hand_on(self, work: Work, logits: torch.Tensor | None) -> tuple[int, bool]:
        """Hand on new tokens and count what is held; gives how many there were, and whether the request has ended.

        Args:
            logits: what the last of the tokens was chosen from, `[..., vocab]`.
        """
        reply = self._replies[work]
        new = work.new[work.reported :]
        work.reported += len(new)
        for token in new:
            if reply.timing.first_token_s is None:
                reply.timing.first_token_s = self._now_s()
            reply.add(token, _logprobs(reply, token, logits))
        self._count(work)
        if isinstance(work, PackedWork) and (work.ended or len(work.new) == 1):
            work.publish()
        return len(new), work.ended or (bool(new and reply.request.stop) and _stop_at(reply, reply.text) is not None)

    def _count(self, work: Work) -> None:
        """What a graph has saved so far counts in a budget."""
        if not work.facts.touches:
            return
        size = max(work.frame_size.now_bytes(work), work.frame_reserved)
        if size > work.frame_bytes:
            self._make_room(size - work.frame_bytes)
            self._frames.take(size - work.frame_bytes, "what the graph of a request has saved")
        else:
            self._frames.give(work.frame_bytes - size)
        work.frame_bytes = size

    def end(self, work: Work) -> None:
        """A request has ended as it should: its graph, or a stop text, or all its tokens have come."""
        if not work.ended:
            work.stop()  # first: what the graph makes of its tokens may fail
        reply = self._release(work)
        found = work.results()
        stop = _stop_at(reply, reply.whole) if reply.request.stop else None
        reply.end(saves=found, stop=stop, finish=work.finish if stop is None else "stop", now_s=self._now_s())

    def fail(self, work: Work, error: Exception, *, in_company: bool = False) -> None:
        """A request ends before its time; `in_company`: with all that shared its pass."""
        self._release(work).fail(error, self._now_s(), in_company=in_company)

    def _release(self, work: Work) -> Reply:
        self._frames.give(work.frame_bytes)
        work.frame_bytes = 0
        return self._replies.pop(work)


def _stop_at(reply: Reply, text: str) -> int | None:
    """Where the first stop text begins, if one has come."""
    return min((at for stop in reply.request.stop if (at := text.find(stop)) >= 0), default=None)


def _logprobs(reply: Reply, token: int, logits: torch.Tensor | None) -> Mapping[int, float]:
    count = reply.request.logprobs
    if not count or logits is None:
        return {}
    own = logits[-1].float().log_softmax(-1)
    best = own.topk(min(count, len(own)))
    return {token: float(own[token]), **dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))}
