"""Which option a text names: by its letter or by its words, and never by elimination, by order or by chance."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from .compare import CJK, NEGATIONS, normal, words, yes_or_no


class Choice(NamedTuple):
    """A letter, and whether the letter itself was said or the option's words."""

    letter: str
    by: Literal["letter", "option"]


_AFTER_THESE = """
so thus therefore hence then option options choice answer is are was it's its be as choose chose pick select say said with guess
to or and nor but either both between probably maybe perhaps definitely likely clearly certainly think believe not neither except
letter called for actually rather mean la le el der die
"""
_BEFORE = set(_AFTER_THESE.split())
"""Words after which a capital letter names an option. After others ("vitamin", "point", "row") it names something else."""
_OPTION_LINE = re.compile(r"(?:^|\n)\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*([^\n]+)")
_INLINE_OPTION = re.compile(r"\(([A-Z])\)\s*([^\n(]+?)(?=\s*[,;]?\s*\([A-Z]\)|$|\n)")
_SENTENCE = re.compile(r"(?<=[.!?\n])")
_REASON = r"(?:because|since|as|due|based|given|for|is)\b"


class _Patterns(NamedTuple):
    alone: re.Pattern[str]
    head: re.Pattern[str]
    joined: re.Pattern[str]
    standing: re.Pattern[str]
    named: re.Pattern[str]
    affirmed: re.Pattern[str]
    denied: tuple[re.Pattern[str], ...]


@lru_cache(maxsize=32)
def _patterns(count: int) -> _Patterns:
    one = f"[A-{chr(ord('A') + count - 1)}]"
    around, end = r"[(\[{*_\"'“]{0,3}", r"[)\]}*_\"'”]{0,3}"
    edge = rf"(?=\s{{0,3}}(?:[.,;:!?)\]*\n]|$)|[{CJK}])"
    joint = r"\s{0,3}(?:,|/|&|\bor\b|\band\b|\bnor\b|\bmaybe\b|或|和)\s{0,3}(?:(?:or|nor|and|maybe)\s{1,3})?"
    several = rf"{around}({one}){end}(?![\w'’])(?:{joint}{around}{one}{end}(?![\w'’])){{0,8}}"
    verb = r"(?:is|are|was|looks|seems|must\s+be)"
    return _Patterns(
        alone=re.compile(rf"(?:option|choice|answer)?\s*[:(\[{{]?\s*({one})\s*[)\]}}.:,;!]*", re.IGNORECASE),
        head=re.compile(rf"(?:[(\[]({one})[)\]]|({one})(?![\w'’\-]|[.]\w))"),
        joined=re.compile(rf"{joint}(?:option\s+)?{around}{one}{end}(?:{edge}|\s*$|{joint})"),
        standing=re.compile(
            rf"[(\[]({one})[)\]]|(?<![A-Za-z0-9_'’\-.])({one})(?:(?!['’\-]|\.\w){edge}|(?=\s+(?:or|and|nor)\s+[(\[]?{one}\b))"
        ),
        named=re.compile(rf"\b(?:option|choice)\s+{around}({one})\b(?!['’\-])", re.IGNORECASE),
        affirmed=re.compile(
            rf"(?<![A-Za-z0-9_'’\-.])(?<!or )(?<!and )(?<!if )(?<!whether ){around}({one}){end}\s{{0,3}}"
            rf"(?:[:–—-]\s{{0,3}}|{verb}\s+)(?:(?:the|clearly|most|likely)\s+)*(?:correct|right|best|true|answer)\b"
        ),
        denied=(
            re.compile(
                r"(?:\b(?:not|cannot|neither|nor|except|without|rather\s+than|instead\s+of|excludes?|eliminates?|rules?\s+out)|n['’]t)\s+"
                rf"(?:(?:be|option|choice|either|the\s+answer|answer)\s+)*{several}|(?:不是|不选|并非)\s{{0,3}}{several}",
                re.IGNORECASE,
            ),
            re.compile(
                rf"(?<![A-Za-z0-9_'’\-.]){several}\s{{0,3}}(?:[:–—-]\s{{0,3}}|{verb}\s+|(?={verb}n))?(?:(?:also|clearly|definitely|{verb})\s*)*"
                r"(?:not\b|n['’]t\b|wrong|incorrect|false|impossible|excluded|eliminated|ruled\s+out|out\b)"
            ),
        ),
    )


def read_choice(text: str, options: Sequence[str], count: int, *, strict_case: bool = False) -> Choice | None:
    """The option that ``text`` names, or None. ``strict_case``: a lone small "a" or "i" is a word, not a letter."""
    said = text.strip()
    plain = said.strip("*_`\"'“”‘’ $>✅-\n")
    shape = _patterns(count)
    by_text = _equal(said, options)
    alone = shape.alone.fullmatch(plain)
    if alone and not (strict_case and plain in ("a", "i")):
        letter = alone.group(1).upper()
        return Choice(letter, "letter") if by_text in (None, letter) else None
    if by_text:
        return Choice(by_text, "option")
    denied = _denied(plain, shape)
    kept = _without_denied(plain, denied)
    head = shape.head.match(plain)
    lettered = head is not None and (head.group(1) or _is_letter(head.group(2), plain[head.end() :]))
    if head and lettered and (head.group(1) or head.group(2)) not in denied:
        return _headed(head, plain, kept, options, count)
    affirmed = set(shape.affirmed.findall(kept))
    named = affirmed if len(affirmed) == 1 else _standing(kept, shape)
    if named:
        return Choice(named.pop(), "letter") if len(named) == 1 else None
    if {normal(option) for option in options} == {"yes", "no"}:
        word = yes_or_no(said)
        return Choice(_letter([normal(option) for option in options].index(word)), "option") if word else None
    by_text = _said(plain, options)
    return Choice(by_text, "option") if by_text else None


def read_unmarked(text: str, options: Sequence[str], count: int) -> Choice | None:
    """`read_choice` of a whole reply: questions that it asks itself and a repetition of the options' list are left out."""
    lines = text.split("\n")
    echoes = [line for line in lines if _echoed(line, options)]
    if len(echoes) > 1:
        text = "\n".join(line for line in lines if not _echoed(line, options))
    text = "".join(sentence for sentence in _SENTENCE.split(text) if not sentence.rstrip().endswith("?"))
    return read_choice(text, options, count)


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _is_letter(letter: str, rest: str) -> bool:
    """A capital at the head of a text: an article or pronoun when a word follows ("A man", "I see")."""
    if letter not in "AI" or not rest or re.match(rf"\s*(?:[.,;:!?)\]*/&(]|\n|$|[{CJK}])|\s+(?:or|and|nor)\s", rest):
        return letter != "I" or not re.match(r"\s*,\s|\s+(?:or|and)\s", rest)
    return letter == "A" and re.match(rf"\s+{_REASON}", rest) is not None


def _headed(head: re.Match[str], plain: str, kept: str, options: Sequence[str], count: int) -> Choice | None:
    """A letter at the head: taken unless another letter, or the very text of another option, goes with it."""
    letter, rest = head.group(1) or head.group(2), plain[head.end() :]
    shape = _patterns(count)
    if shape.joined.match(rest):
        return None
    clause = re.split(r"[.;\n]|,\s", rest.lstrip(" .):;,-–—*"), maxsplit=1)[0]
    named = _equal(clause, options) or _equal(rest.lstrip(" .):;,-–—*"), options)
    if named not in (None, letter):
        return None
    if named == letter:
        return Choice(letter, "letter")
    affirmed = set(shape.affirmed.findall(kept))
    rivals = affirmed or _standing(kept[head.end() :], shape)
    return Choice(letter, "letter") if rivals <= {letter} else None


def _denied(text: str, shape: _Patterns) -> set[str]:
    return {letter for pattern in shape.denied for found in pattern.finditer(text) for letter in found.groups() if letter}


def _without_denied(text: str, denied: set[str]) -> str:
    """The text with every denial blanked out, so that what is left over can be read as affirmed. Keeps all positions."""
    if not denied:
        return text
    for pattern in _patterns(26).denied:
        text = pattern.sub(lambda found: "_" * len(found.group()), text)
    return text


def _standing(text: str, shape: _Patterns) -> set[str]:
    """Letters that stand alone where an answer can stand: in brackets, at the start of a line or clause, or after "so", "is"
    ..."""
    found = set(shape.named.findall(text.replace("_", " ")))
    for match in shape.standing.finditer(text):
        letter = match.group(1) or match.group(2)
        if match.group(1):
            found.add(letter)
            continue
        before = text[max(0, match.start() - 40) : match.start()].rstrip(" *_`\"'“‘([")
        last = re.search(rf"[^\s.,;:!?)>→=\-{CJK}]+$", before)
        if (last is None or last.group().casefold() in _BEFORE) and (letter != "I" or text[match.end() :].strip() in ("", ".")):
            found.add(letter)
    return {letter.upper() for letter in found}


def blank_letters(text: str, count: int) -> str:
    """The text with every letter that names an option replaced by "_", so that it can be read under another order of the
    options."""
    shape = _patterns(count)
    spans = [match.span(1) if match.group(1) else match.span(2) for match in shape.standing.finditer(text)]
    spans += [match.span(1) for match in shape.named.finditer(text)]
    letters = list(text)
    for start, end in spans:
        letters[start:end] = "_"
    return "".join(letters)


def _echoed(line: str, options: Sequence[str]) -> bool:
    found = re.match(r"\s*\(?([A-Z])[.):]\s*(\S.*)", line[:2000])
    index = ord(found.group(1)) - ord("A") if found else -1
    return found is not None and index < len(options) and normal(found.group(2)) == normal(options[index])


def _equal(text: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose text this is."""
    if len(text) > 20_000 or not text.strip():
        return None
    raw = [index for index, option in enumerate(options) if option.strip() == text.strip()]
    if len(raw) == 1:
        return _letter(raw[0])
    said = normal(text)
    if len(said) == 1 and len(re.findall(r"\b\w\b", text)) > 1:
        return None  # "C. A" is a letter and an option's text, of which one was taken for an article
    same = [index for index, option in enumerate(options) if said and words(option) and normal(option) == said]
    return _letter(same[0]) if len(same) == 1 else None


def _said(text: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose words are said and not denied. An option inside a longer one that is said does not
    count."""
    clauses: list[int] = []
    said = words(text, clauses)
    starts, total = [], 1
    for word in said:
        starts.append(total)
        total += len(word) + 1
    joined = f" {' '.join(said)} "
    taken = bytearray(len(said))
    places: dict[int, list[int]] = {}
    for index, option in sorted(enumerate(options), key=lambda pair: -len(words(pair[1]))):
        wanted = words(option)
        needle = f" {' '.join(wanted)} "
        at = joined.find(needle) if wanted else -1
        while at >= 0:
            first = bisect_right(starts, at + 1) - 1
            if not any(taken[first : first + len(wanted)]):
                taken[first : first + len(wanted)] = b"\1" * len(wanted)
                places.setdefault(index, []).append(first)
            at = joined.find(needle, at + 1)
    denials: dict[int, int] = {}
    for place, word in enumerate(said):
        if word in NEGATIONS and not taken[place]:
            denials.setdefault(clauses[place], place)
    affirmed = [index for index, found in places.items() if any(denials.get(clauses[at], at) >= at for at in found)]
    return _letter(affirmed[0]) if len(affirmed) == 1 else None


def options_in(question: str) -> tuple[str, ...]:
    """The options that a question lists in its text, "A. red" or "(A) red", lettered from A without a gap; else none.

    >>> options_in("Which colour?\\nA. red\\nB. blue")
    ('red', 'blue')
    """
    return tuple(question[start:end] for start, end in option_spans(question))


def option_spans(question: str) -> tuple[tuple[int, int], ...]:
    """Where in a question the texts of its options stand, in the order of their letters; see `options_in`."""
    for pattern in (_OPTION_LINE, _INLINE_OPTION):
        spans: list[tuple[int, int]] = []
        for found in pattern.finditer(question):
            body = len(found.groups())
            letter = next(group for group in found.groups() if group)
            if letter == _letter(len(spans)):
                text = found.group(body)
                start = found.start(body) + len(text) - len(text.lstrip())
                spans.append((start, start + len(text.strip().rstrip(",;"))))
        if len(spans) >= 2:
            return tuple(spans)
    return ()


def letter_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter of a reference answer that is a letter ("B", "(B)", "B. blue") or an option's text."""
    same = [index for index, option in enumerate(options) if normal(option) == normal(answer)]
    if len(same) == 1:
        return _letter(same[0])
    found = re.match(r"\s*\(?([A-Z])(?:[).:]|\s*$)", answer)
    if found and (not options or ord(found.group(1)) - ord("A") < len(options)):
        return found.group(1)
    return None
