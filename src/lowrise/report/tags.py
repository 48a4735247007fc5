"""Names beside the dots of a chart, where there is room for them."""

from __future__ import annotations

from collections.abc import Sequence

# Pixels: of a letter, of a line, from dot to text, of half a dot. The same in `page.js`, which places the
# names again after a zoom.
CHARACTER, HEIGHT, AWAY, DOT = 6.4, 12.0, 8.0, 4.0

Box = tuple[float, float, float, float]  # left, right, top, bottom


def place_tags(
    dots: Sequence[tuple[float, float]], names: Sequence[str], box: Box
) -> list[tuple[float, float, str] | None]:
    """For each dot (x, y) where its name is written: x, baseline and `text-anchor`; None where it finds no
    room.

    Right of the dot, else left, above or below it, centred or to one side; within `box`, clear of every dot
    and of the names before, so that the first ones have the choice.
    """
    taken = [(x - DOT, x + DOT, y - DOT, y + DOT) for x, y in dots]
    placed: list[tuple[float, float, str] | None] = []
    for (x, y), name in zip(dots, names, strict=True):
        width = CHARACTER * len(name)
        above, below = y - AWAY, y + AWAY + HEIGHT - 3
        spots = (
            (x + AWAY, y + 4, "start", x + AWAY),
            (x - AWAY, y + 4, "end", x - AWAY - width),
            (x, above, "middle", x - width / 2),
            (x, below, "middle", x - width / 2),
            (x - DOT, above, "start", x - DOT),
            (x - DOT, below, "start", x - DOT),
            (x + DOT, above, "end", x + DOT - width),
            (x + DOT, below, "end", x + DOT - width),
        )
        found = None
        for at, baseline, anchor, left in spots:
            room = (left, left + width, baseline - HEIGHT + 3, baseline + 3)
            inside = room[0] >= box[0] and room[1] <= box[1] and room[2] >= box[2] and room[3] <= box[3]
            if name and inside and not any(_overlap(room, other) for other in taken):
                found = (at, baseline, anchor)
                taken.append(room)
                break
        placed.append(found)
    return placed


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
