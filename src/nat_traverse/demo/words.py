"""What the two programs say as data, in words: a sentence for now, a label for the timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    Fields = Mapping[str, Any]

# What an event is called in the timeline; one that is not here has no place there.
_LABELS: Final = {
    "opened": "port open",
    "agreed-pair": "other ports work",
    "heard": "heard the peer",
    "refused": "refused",
    "port-changed": "other port seen",
    "validated": "path proven",
    "connected": "connected",
    "finished": "has all data",
    "delivered": "delivered",
    "closed": "closed by peer",
    "vanished": "peer vanished",
    "overflowed": "data lost",
    "error": "gave up",
}
# Shown with `--verbose` only.
_DETAILS: Final = frozenset({"validated"})
# Strategies that begin beside another one, or at once.
_QUIETLY: Final = frozenset({"direct", "hop", "predict"})

_OPENING_ENDED: Final = "time to live exceeded"  # the error that an opening packet is to meet


class Words(NamedTuple):
    """What to show. `detail` is what only `--verbose` shows; no `label`, no place in the timeline.

    A line feed parts the paragraphs of `text`.
    """

    text: str
    label: str = ""
    detail: bool = False


def words(event: Fields) -> Words:
    """Put one line of `--json` into words. They are the program's own, where it has any."""
    name = event["event"]
    text = str(event.get("text", name))
    if event.get("error") == _OPENING_ENDED:
        return Words(text, "way out opened", detail=True)
    if name == "trying":
        strategy = event.get("strategy")
        return Words(text, f"tries: {strategy}", detail=strategy in _QUIETLY)
    if name == "opened":
        # The demo has shown what to run on the other side.
        text = text.partition("\n")[0]
    return Words(text, _LABELS.get(name, ""), detail=name in _DETAILS)
