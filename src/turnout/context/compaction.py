"""Fitting a conversation into a window: old tool outputs to stubs, then older turns to a summary (SPEC CTX-3, CTX-4).

The history is replayed: wherever it first passed the threshold it is compacted down to the target, and from there on it
only grows, until it passes the threshold again. So a longer conversation begins with the compacted form of the shorter
one, which is what prefix caches need, and nothing has to be remembered between requests.

What gives way, in this order, each only when what came before did not suffice:

1. long tool outputs, except the newest few, become stubs that name the tool and the size;
2. messages before the newest become one summary, oldest first, down to the newest messages and tool calls, which the
   configuration keeps; until here the aim is the target, from here on the window (or the target that was asked for):
3. the newest tool outputs become stubs too, oldest first, all but the last;
4. the kept tool calls that are older, then fewer of the newest messages are kept, down to the turn that begins with the
   last user message;
5. the last tool output becomes a stub;
6. the steps of that turn itself are summarised, oldest first;
7. the summary goes.

What was decided for a conversation can be given again as ``known``: then the same is sent although the counter has
learned since, and a summary that a model wrote stays the one it was.

The system prompt and the last user message never change. A tool call is never parted from its results. The summary is
a user's message; when a user's message follows it, a short answer stands between, because strict chat templates refuse
two of one role in a row.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate, islice

from turnout.config import ContextConfig
from turnout.context.tokens import TokenCounter, get_token_counter
from turnout.errors import ContextOverflowError
from turnout.types import Image, Message, Part, Reasoning, Text, ToolCall, ToolResult, message

SUMMARY_MARK = "[Previous conversation summary]"
STUB_MARK = "[Tool output truncated - "
ACKNOWLEDGED = message("assistant", "Understood.")
_PLAIN = get_token_counter("")
SUMMARY_POINTS, POINT_CHARS = 10, 100
# In a small window ten points would leave the conversation no room to grow before the next cut.
LEAST_POINTS, TOKENS_A_POINT = 2, 80
_STUB = re.compile(re.escape(STUB_MARK) + r".*\] \(was \d+ characters\)")
# Of text in lower case, which is searched in less than half of the time that IGNORECASE takes.
_DECIDED = re.compile(
    r"\b(?:created?|added|decided?|implemented|fixed|changed|removed|wrote|chose|will\s+use|renamed|moved|deleted)\b"
)
_CHANGES = re.compile(r"write|edit|create|patch|replace|insert|delete|remove|rename|move", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")
# A point is short; the first characters of a message hold it.
_POINT_SOURCE = 2000


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation that fits.

    Attributes:
        messages: what to send.
        tokens_before, tokens_after: by the counter that was given.
        steps: what was done, for people.
        changed: whether ``messages`` differ from what was given.
        decided: the form it was brought into, and the key under which to give it again; None when it fitted.
        new: that was decided now.
        left_out: the messages in whose place a summary stands.
    """

    messages: tuple[Message, ...]
    tokens_before: int
    tokens_after: int
    steps: tuple[str, ...] = ()
    changed: bool = False
    decided: tuple[bytes, Form] | None = None
    new: bool = False
    left_out: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """How far a history is compacted.

    Attributes:
        stubbed: tool results, counted from the first, that are stubs when they are long.
        cut: messages before this one are summarised,
        kept: except the groups that begin here.
        told: the summary is there.
        answered: an answer follows the summary. Decided where the form is made: what comes later changes nothing.
        text: the summary as a model wrote it, or "" for the extractive one.
    """

    stubbed: int = 0
    cut: int = 0
    kept: tuple[int, ...] = ()
    told: bool = True
    answered: bool = False
    text: str = ""


NOTHING_KNOWN: Mapping[bytes, Form] = {}


def conversation_key(messages: Sequence[Message]) -> bytes:
    """What a conversation is known by however long it grows: its system messages and the first other one."""
    lead = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    return history_key(messages[: lead + 1])


def history_key(messages: Sequence[Message]) -> bytes:
    """A digest of what messages say."""
    return _chain(messages, b"")[-1] if messages else b""


def fit(
    messages: Sequence[Message],
    *,
    window: int,
    reserve: int,
    counter: TokenCounter,
    config: ContextConfig,
    target: int | None = None,
    known: Mapping[bytes, Form] = NOTHING_KNOWN,
    compact_at: Sequence[int] = (),
) -> Fitted:
    """Make ``messages`` fit.

    Args:
        messages: system messages first, then the conversation.
        window: tokens there is room for, prompt and answer.
        reserve: tokens kept free for the answer.
        counter: counts for the model that will read it.
        config: thresholds.
        target: compact to at most this many tokens, if that can be done; None compacts only beyond the threshold.
        known: what was decided for this conversation in this window before, as ``Fitted.decided`` had it.
        compact_at: after so many messages, system messages not counted, it is compacted in any case.

    Raises:
        ContextOverflowError: the system prompt and the last user message alone exceed the window.
    """
    given = tuple(messages)
    costs = [counter.count_message(m) for m in given]
    before = sum(costs)
    room = max(1, window - reserve)
    threshold = min(room, int(window * config.compaction_threshold))
    if before <= threshold and (target is None or before <= target) and not known and not compact_at:
        return Fitted(given, before, before)
    # Below the threshold by the same share also where a long answer's room lowers it: else every message compacts.
    goal = int(min(window, room / config.compaction_threshold) * config.compaction_target)
    points = min(SUMMARY_POINTS, max(LEAST_POINTS, goal // TOKENS_A_POINT))
    history = _History(given, costs, counter, config, points)
    begin, old = history.remembered(known, room)
    at, form = _replay(history, begin, old, _Aims(threshold, goal, room, tuple(compact_at)))
    size = len(history.body)
    if target is not None and history.tokens(form, size) > target:
        form = _cut(history, size, form, min(room, target), min(room, target))
    fitted = history.view(form)
    after = counter.count_messages(fitted)
    if after > room:
        raise ContextOverflowError(
            f"the system prompt and the last user message have about {after:,} tokens; the window of {window:,} leaves"
            f" {room:,} for them",
            prompt_tokens=after,
            window=window,
            hint="shorten the message, ask about a part of it, or use a model with a larger window",
        )
    decided = (history.key(at), form) if at else None
    left_out, changed = history.left_out(form), fitted != given
    return Fitted(fitted, before, after, history.steps(form), changed, decided, at > begin, left_out)


@dataclass(frozen=True, slots=True)
class _Aims:
    """In tokens: what starts a compaction, what it is to come down to, and what is never passed; and where it is asked
    for."""

    threshold: int
    goal: int
    room: int
    compact_at: tuple[int, ...]


def _replay(history: _History, begin: int, old: Form, aims: _Aims) -> tuple[int, Form]:
    """The form after every place where the history, growing from ``begin``, passed the threshold; and the last such
    place."""
    at, form = begin, old
    tokens = history.tokens(form, begin)
    for end in history.ends[bisect_right(history.ends, begin) :]:
        tokens += sum(history.costs[begin:end])
        asked = bool(aims.compact_at) and any(begin < number <= end for number in aims.compact_at)
        begin = end
        if tokens > aims.threshold or asked:
            goal = min(aims.goal, tokens // 2) if asked else aims.goal
            form = _cut(history, end, form, goal, aims.room)
            at, tokens = end, history.tokens(form, end)
    return at, form


def _cut(history: _History, end: int, old: Form, goal: int, limit: int) -> Form:
    """The gentlest form of the first ``end`` messages: within ``goal`` while the order asks for it, then ``limit``."""
    least, tokens = history.measure(end, old.cut)
    forms = list[Form]()
    old = replace(old, text="")
    for form in history.gentle(end, old):
        if least(form) <= goal and tokens(form) <= goal:
            return form
        forms.append(form)
    if tokens(shortest := min(forms, key=tokens)) <= limit:
        return shortest
    shortest = forms[-1]
    for form in history.harsh(end, shortest):
        if tokens(shortest := form) <= limit:
            break
    return shortest


class _History:
    """A conversation prepared for compaction: what is sent together, what each piece costs, what a summary would say.

    ``body`` is what follows the leading system messages; a *group* of it is what must stay together: a message, or a
    tool call with everything up to its last result.
    """

    def __init__(
        self,
        messages: tuple[Message, ...],
        costs: list[int],
        counter: TokenCounter,
        config: ContextConfig,
        points: int,
    ) -> None:
        lead = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
        self.given, self.head, self.body = messages, messages[:lead], messages[lead:]
        self._counter, self._config, self._most_points = counter, config, points
        self.head_tokens, self.costs = sum(costs[:lead]), costs[lead:]
        self.starts, self._result_names = _grouped(self.body)
        self.ends = [*self.starts[1:], len(self.body)] if self.body else []
        self._results = list(accumulate((len(m.tool_results) for m in self.body), initial=0))
        self._users = self._last_users()
        self._shown: dict[tuple[int, int], tuple[Message, int]] = {}
        self._keys: list[bytes] | None = None
        self._points_of: dict[int, Sequence[tuple[int, int, str]]] = {}

    def remembered(self, known: Mapping[bytes, Form], room: int) -> tuple[int, Form]:
        """The last decision that is known for a beginning of this history and still leaves it within the room."""
        if known:
            for end in reversed(self.ends):
                form = known.get(self.key(end))
                if form is not None and self._holds(form, end) and self.tokens(form, end) <= room:
                    return end, form
        return 0, Form()

    def _holds(self, form: Form, end: int) -> bool:
        """Whether a form that was kept somewhere can be one of the first ``end`` messages: no group parted, none twice,
        and the last user message among what is sent."""
        kept = {*form.kept}
        whole = form.cut in {0, *self.ends} and form.cut <= end and [*form.kept] == sorted(kept)
        before = {*self.starts[: bisect_left(self.starts, form.cut)]}
        speaks = self._users[end] >= form.cut or self._users[end] in kept
        return whole and kept <= before and speaks and 0 <= form.stubbed <= self._results[end]

    def key(self, end: int) -> bytes:
        """What the first ``end`` messages are known by."""
        if self._keys is None:
            self._keys = _chain(self.body, history_key(self.head))
        return self._keys[end - 1]

    def left_out(self, form: Form) -> tuple[Message, ...]:
        """The messages that a form summarises."""
        kept = set(self._kept_indexes(form))
        return tuple(m for i, m in enumerate(self.body[: form.cut]) if i not in kept) if form.told else ()

    def gentle(self, end: int, old: Form) -> Iterator[Form]:
        """Steps 1 and 2."""
        recent = max(0, self._results[end] - self._config.preserve_recent_tool_calls)
        form = replace(old, stubbed=max(old.stubbed, recent))
        yield form
        verbatim = {self._users[end], *self._groups_with_results(recent, end)}
        # The newest message stays: behind an answer that is gone, the next user's message would follow a user's.
        yield from self._shorter(form, end, end, verbatim, max(1, self._config.preserve_recent_messages))

    def harsh(self, end: int, old: Form) -> Iterator[Form]:
        """Steps 3 to 7."""
        results, user = self._results[end], self._users[end]
        last = old
        for stubbed in range(old.stubbed + 1, results):
            last = replace(old, stubbed=stubbed)
            yield last
        for form in self._shorter(last, user, end, set(), 0):
            yield (last := form)
        last = replace(last, stubbed=results)
        yield last
        for form in self._shorter(last, end, end, {user}, 0):
            yield (last := form)
        yield replace(last, told=False)

    def _shorter(self, old: Form, before: int, end: int, verbatim: set[int], keep: int) -> Iterator[Form]:
        """Forms with ever more of what is sent summarised: groups that begin before ``before`` and are not
        ``verbatim``, as long as ``keep`` messages follow."""
        sent = [*old.kept, *self.starts[bisect_left(self.starts, old.cut) : bisect_left(self.starts, end)]]
        left = sum(self._stop(start) - start for start in sent)
        kept: list[int] = []
        for place, start in enumerate(sent, 1):
            left -= self._stop(start) - start
            if start >= before or left < keep:
                return
            if start in verbatim:
                kept.append(start)
            if place <= len(old.kept):
                yield self._form(old.stubbed, old.cut, (*kept, *old.kept[place:]), end)
            else:
                yield self._form(old.stubbed, self._stop(start), tuple(kept), end)

    def _form(self, stubbed: int, cut: int, kept: tuple[int, ...], end: int) -> Form:
        follows = kept[0] if kept else cut
        return Form(stubbed, cut, kept, answered=follows >= end or self.body[follows].role == "user")

    def _stop(self, start: int) -> int:
        return self.ends[bisect_left(self.starts, start)]

    def measure(self, end: int, begin: int) -> tuple[Callable[[Form], int], Callable[[Form], int]]:
        """Two functions that count a form of the first ``end`` messages whose cut is not before ``begin``: what stands
        behind the cut, which is quick, and all of it, for which a summary has to be made."""
        sums: dict[int, list[int]] = {}

        def least(form: Form) -> int:
            if form.stubbed not in sums:
                costs = (self._cost(i, form.stubbed) for i in range(begin, end))
                sums[form.stubbed] = list(accumulate(costs, initial=0))
            summed = sums[form.stubbed]
            return self.head_tokens + summed[-1] - summed[form.cut - begin]

        def tokens(form: Form) -> int:
            kept = sum(self._cost(i, form.stubbed) for i in self._kept_indexes(form))
            return least(form) + kept + self._counter.count_messages(self._told(form))

        return least, tokens

    def tokens(self, form: Form, end: int) -> int:
        """Tokens of a form of the first ``end`` messages."""
        return self.measure(end, form.cut)[1](form)

    def view(self, form: Form) -> tuple[Message, ...]:
        """The messages of a form."""
        kept = [*self._kept_indexes(form), *range(form.cut, len(self.body))]
        return (*self.head, *self._told(form), *(self._sent(i, form.stubbed)[0] for i in kept))

    def steps(self, form: Form) -> tuple[str, ...]:
        """What a form does, for people."""
        found: list[str] = []
        kept = [*self._kept_indexes(form), *range(form.cut, len(self.body))]
        if any(self._sent(i, form.stubbed)[0] is not self.body[i] for i in kept):
            found.append(f"{'all' if form.stubbed >= self._results[-1] else 'old'} tool outputs shortened")
        if left := len(self.body) - len(kept):
            by = " by a model" if form.text else ""
            found.append(f"{left} older messages {f'summarised{by}' if form.told else 'left out'}")
        return tuple(found)

    def _kept_indexes(self, form: Form) -> Iterator[int]:
        for start in form.kept:
            yield from range(start, self._stop(start))

    def _groups_with_results(self, first: int, end: int) -> Iterator[int]:
        """The groups that hold the results from number ``first`` on."""
        index = bisect_right(self._results, first) - 1
        group = bisect_right(self.starts, index) - 1
        for start, stop in zip(self.starts[group:], self.ends[group:], strict=True):
            if stop > end:
                return
            if self._results[stop] > max(first, self._results[start]):
                yield start

    def _last_users(self) -> list[int]:
        """For each number of messages: the group of the last user message in them, else the last group."""
        found, user, group, groups = [0], -1, 0, {*self.starts}
        for index, m in enumerate(self.body):
            group = index if index in groups else group
            if _speaks(m) and not (index == 0 and _is_summary(m) and len(self.body) > 1):
                user = group
            found.append(group if user < 0 else user)
        return found

    def _cost(self, index: int, stubbed: int) -> int:
        return self.costs[index] if stubbed <= self._results[index] else self._sent(index, stubbed)[1]

    def _sent(self, index: int, stubbed: int) -> tuple[Message, int]:
        """A message and its tokens when the first ``stubbed`` results of the history are stubs."""
        first, number = self._results[index], len(self.body[index].tool_results)
        short = min(stubbed - first, number)
        if short <= 0:
            return self.body[index], self.costs[index]
        if (index, short) not in self._shown:
            sent = self._with_stubs(index, short)
            self._shown[index, short] = (sent, self._counter.count_message(sent))
        return self._shown[index, short]

    def _with_stubs(self, index: int, short: int) -> Message:
        original, parts, seen = self.body[index], list[Part](), 0
        for part in original.parts:
            if isinstance(part, ToolResult):
                if seen < short:
                    name = part.name or self._result_names[self._results[index] + seen]
                    part = self._stub(part, name)  # noqa: PLW2901
                seen += 1
            parts.append(part)
        return original if tuple(parts) == original.parts else replace(original, parts=tuple(parts))

    def _stub(self, result: ToolResult, name: str) -> ToolResult:
        # Counted the same for every model, and characters told: what is a stub, and how it reads, must not change with
        # the counter, or every cache behind it is lost.
        tokens = _PLAIN.count(result.content)
        if tokens <= self._config.max_tool_output_tokens or _STUB.fullmatch(result.content):
            return result
        stub = f"{STUB_MARK}{name or 'tool'}] (was {len(result.content)} characters)"
        return replace(result, content=stub) if _PLAIN.count(stub) < tokens else result

    def _told(self, form: Form) -> tuple[Message, ...]:
        summary = self._summary(form)
        if summary is None:
            return ()
        return (summary, ACKNOWLEDGED) if form.answered else (summary,)

    def _summary(self, form: Form) -> Message | None:
        """One message for what a form leaves out: the first point, which is the task, and the newest."""
        kept = set(self._kept_indexes(form))
        if not form.told or form.cut == len(kept):
            return None
        if form.text:
            return message("user", f"{SUMMARY_MARK}\n{form.text}")
        newest = (at for i in reversed(range(form.cut)) if i not in kept for at in reversed(self._points(i)))
        oldest = (at for i in range(form.cut) if i not in kept for at in self._points(i))
        chosen = sorted({*islice(newest, self._most_points - 1), *islice(oldest, 1)})
        lines = (line for _, _, line in chosen)
        # A user's message: many templates refuse a system message that is not the first one.
        return message("user", "\n".join((SUMMARY_MARK, *lines)))

    def _points(self, index: int) -> Sequence[tuple[int, int, str]]:
        """What a message gives to a summary, in its order; looked for when it is needed, as most never are."""
        if index not in self._points_of:
            lines = _points(index, self.body[index])
            self._points_of[index] = [(index, number, line) for number, line in enumerate(lines)]
        return self._points_of[index]


def _chain(messages: Sequence[Message], start: bytes) -> list[bytes]:
    """For each message a digest of it and all before it."""
    found: list[bytes] = []
    for m in messages:
        said = [start]
        for text in (m.role, *[text for part in m.parts for text in _content(part)]):
            content = text.encode("utf-8", "surrogatepass")
            said += (len(content).to_bytes(8, "big"), content)
        start = blake2b(b"".join(said), digest_size=16).digest()
        found.append(start)
    return found


def _content(part: Part) -> tuple[str, ...]:
    match part:
        case Text(text):
            return "text", text
        case Image(kind, data, url):
            return "image", kind, data, url
        case Reasoning(text):
            return "reasoning", text
        case ToolCall():
            return "call", part.call_id, part.name, part.arguments
        case ToolResult():
            return "result", part.call_id, part.content


def _grouped(body: Sequence[Message]) -> tuple[list[int], list[str]]:
    """Where each group begins, and the tool's name of each result."""
    starts: list[int] = []
    names: list[str] = []
    calls: dict[str, tuple[int, str]] = {}
    for index, m in enumerate(body):
        starts.append(index)
        for result in m.tool_results:
            at, name = calls.get(result.call_id, (index, ""))
            names.append(name)
            while starts[-1] > at:
                starts.pop()
        for call in m.tool_calls:
            calls[call.call_id] = (index, call.name)
    return starts, names


def _speaks(m: Message) -> bool:
    return m.role == "user" and any(not isinstance(part, ToolResult) for part in m.parts)


def _is_summary(m: Message) -> bool:
    return m.role == "user" and len(m.parts) == 1 and m.text.split("\n", 1)[0] == SUMMARY_MARK


def _points(index: int, m: Message) -> tuple[str, ...]:
    if index == 0 and _is_summary(m):
        return tuple(m.text.splitlines()[1:])
    point = _point(m)
    return (f"- {point}",) if point else ()


def _point(m: Message) -> str:
    """One line of the summary: a user's first sentence, or what an assistant created or decided."""
    beginning = _beginning(m)
    if m.role in ("user", "system"):
        said = next(_sentences(beginning), "")
        return f"{m.role.capitalize()}: {said}"[:POINT_CHARS] if said else ""
    if m.role != "assistant":
        return ""
    # Most messages decide nothing: one look at the whole is cheaper than one at each sentence.
    sentences = _sentences(beginning) if _DECIDED.search(beginning.lower()) else iter(())
    if decided := next((s for s in sentences if _DECIDED.search(s.lower())), ""):
        return f"Assistant: {decided}"[:POINT_CHARS]
    change = next((call for call in m.tool_calls if _CHANGES.search(call.name)), None)
    return f"Assistant: {_called(change)}"[:POINT_CHARS] if change else ""


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        if sentence := " ".join(text[begin : end.start()].split()):
            yield sentence
        begin = end.end()
    if sentence := " ".join(text[begin:].split()):
        yield sentence


def _called(call: ToolCall) -> str:
    return f"{call.name} {' '.join(call.arguments[:_POINT_SOURCE].split())}".strip()


def _beginning(m: Message) -> str:
    text = next((part.text for part in m.parts if isinstance(part, Text) and part.text.strip()), "")
    return text.lstrip()[:_POINT_SOURCE]
