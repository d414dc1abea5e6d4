"""What a rule's expression may be, so that no text makes it take long; and the texts without which it cannot match."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from re import _constants as _op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from ..native import native

MATCH_MAX = 1500  #: characters of one expression
_REPEATS = 1024  # of one piece, by all the repetitions around it
_SETS = 3  # of literals that are looked for before an expression is tried


def compiled(text: str) -> re.Pattern[str]:
    """The expression. Raises ValueError with what was expected of it."""
    if len(text) > MATCH_MAX:
        raise ValueError(f"at most {MATCH_MAX} characters, not {len(text)}")
    try:
        if unsafe := _unsafe(_parser.parse(text), 1):
            raise ValueError(unsafe)
        return re.compile(text, re.IGNORECASE | re.ASCII | re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as e:
        raise ValueError(f"a regular expression ({e})") from None


_REPEATING = {_op.MAX_REPEAT, _op.MIN_REPEAT, _op.POSSESSIVE_REPEAT}


def _unsafe(tree: Any, around: int) -> str:
    """What RE2 would not take, or what takes long: a text for the error, empty when there is nothing."""
    for kind, value in tree:
        if kind in (_op.ASSERT, _op.ASSERT_NOT):
            return "no look-around; exceptions go into `not`"
        if kind in (_op.GROUPREF, _op.GROUPREF_EXISTS):
            return "no reference to a group"
        if kind in _REPEATING:
            _, most, inner = value
            single = len(inner) == 1 and inner[0][0] in (_op.IN, _op.LITERAL, _op.NOT_LITERAL, _op.ANY)
            if most == _op.MAXREPEAT and (not single or around > 1):
                return "no repetition without end of a group or inside of one; such as {0,20}"
            if most == _op.MAXREPEAT and kind == _op.MAX_REPEAT and value[0] < 16:
                return "no `*` and no `+`: they take long on hostile text; expected an end, such as {0,200}"
            times = around * (1 if single and around == 1 else max(1, int(most)))
            if times > _REPEATS:
                return f"at most {_REPEATS} repetitions of a piece, by all the repetitions around it"
            if why := _unsafe(inner, times):
                return why
        elif kind is _op.SUBPATTERN:
            if why := _unsafe(value[-1], around):
                return why
        elif kind is _op.BRANCH:
            for branch in value[1]:
                if why := _unsafe(branch, around):
                    return why
        elif kind is getattr(_op, "ATOMIC_GROUP", None):
            return "no atomic group"
    return ""


def literals(pattern: re.Pattern[str]) -> list[set[str]]:
    """Sets of texts in lower case: of each, every match contains one. The most telling set comes first; none is known: []."""
    found = [texts for texts in _needed(_parser.parse(pattern.pattern)) if len(texts) <= 64]
    return found[:_SETS] if found and min(map(len, found[0])) >= 2 else []


def _needed(tree: Any) -> list[set[str]]:
    sets: list[set[str]] = []
    run = ""
    for kind, value in tree:
        if kind is _op.LITERAL and value < 128:
            run += chr(value).lower()
            continue
        if run:
            sets.append({run})
        run = ""
        if kind is _op.SUBPATTERN:
            sets += _needed(value[-1])
        elif kind is _op.BRANCH:
            branches = [_needed(branch) for branch in value[1]]
            if all(branches):  # whichever it is: the n-th of each, or its last
                sets += [set().union(*(b[min(n, len(b) - 1)] for b in branches)) for n in range(max(map(len, branches)))]
        elif kind in _REPEATING and value[0] >= 1:
            sets += _needed(value[2])
    if run:
        sets.append({run})
    return sorted(sets, key=_worth, reverse=True)


def _worth(found: set[str]) -> tuple[int, int]:
    return min(min(map(len, found)), 4), -len(found)


class Finder:
    """Which of many texts stand in another one.

    Args:
        literals: in ASCII, two characters at least.
        ordinary: texts as they are looked through most often.

    Attributes:
        literals: a tuple of them, by the indices that `within` gives.
        within: a function of a text; the indices of those that stand in it.
    """

    def __init__(self, literals: Sequence[str], ordinary: Sequence[str]) -> None:
        self.literals = tuple(literals)
        self.within: Callable[[str], list[int]]
        if native is not None:
            self.within = native.Finder(tuple(literal.encode() for literal in literals)).within
        else:
            at = {literal: i for i, literal in enumerate(self.literals)}
            found = [(gate, [(hint, at[hint]) for hint in hints]) for gate, hints in gates(literals, ordinary)]
            self.within = lambda text: [i for gate, hints in found if gate in text for hint, i in hints if hint in text]


def gates(hints: Sequence[str], ordinary: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The hints, each behind a piece of it that others share and that is rare in ordinary texts: a text without that piece
    has none of them. One alone stands behind itself."""
    samples = ["\n".join(ordinary[i : i + 8]) for i in range(0, len(ordinary), 8)]  # of about the length of a call
    of: dict[str, set[str]] = {}
    for hint in hints:
        for size in (2, 3):
            for i in range(len(hint) - size + 1):
                of.setdefault(hint[i : i + size], set()).add(hint)
    rare = {piece: 1 - sum(piece in sample for sample in samples) / max(len(samples), 1) for piece in of}
    gates: list[tuple[str, tuple[str, ...]]] = []
    left = dict.fromkeys(hints)
    while of:
        worth, piece = max((len(behind) * rare[piece], piece) for piece, behind in of.items())
        if worth <= 1:
            break
        gates.append((piece, tuple(sorted(of[piece]))))
        gone = of.pop(piece)
        for hint in gone:
            del left[hint]
        for other in list(of):
            of[other] -= gone
            if len(of[other]) < 2:
                del of[other]
    return gates + [(hint, (hint,)) for hint in left]
