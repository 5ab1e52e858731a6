# Release versions: semver 2.0.0, strict. One order for everybody, because the
# beacon's downgrade rule and the orchestrator's offer must never disagree.

from . import const

# Longer versions are refused before they are looked at.
MAX = const(64)

_DIGITS = const("0123456789")
_LABEL = _DIGITS + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-"

# The lowest version there is: what "no minimum" is written as.
LOWEST = "0.0.0-0"


# The sort key of a version: (major, minor, patch, labels). A version without
# labels comes after all its pre-releases (2 > 1 > 0); numeric labels compare as
# numbers and before the others; a longer list of labels wins over its prefix,
# which is what tuples do anyway. Raises ValueError for anything not semver.
def parse(text):
    if not isinstance(text, str) or len(text) > MAX:
        raise ValueError("not a version")
    rest, plus, build = text.partition("+")
    if plus:
        for label in build.split("."):
            _check(label)
    numbers, dash, labels = rest.partition("-")
    numbers = numbers.split(".")
    if len(numbers) != 3:
        raise ValueError("not major.minor.patch")
    major, minor, patch = [_number(n) for n in numbers]
    keys = [_label(label) for label in labels.split(".")] if dash else [(2, 0, "")]
    return major, minor, patch, tuple(keys)


# -1, 0 or 1 as a comes before, with or after b. Build metadata does not count.
def compare(a, b):
    a = parse(a)
    b = parse(b)
    return (a > b) - (a < b)


def _check(label):
    if not label:
        raise ValueError("empty label")
    for c in label:
        if c not in _LABEL:
            raise ValueError("bad character")


def _label(label):
    _check(label)
    for c in label:
        if c not in _DIGITS:
            return 1, 0, label
    return 0, _number(label), ""


def _number(text):
    if not text or (text[0] == "0" and len(text) > 1):
        raise ValueError("not a number")
    for c in text:
        if c not in _DIGITS:
            raise ValueError("not a number")
    return int(text)
