"""Small square plots as SVG images."""

from __future__ import annotations

SIDE, EDGE = 300, 50  # pixels


def square_plot(inside: str, most: float, along: str, up: str) -> str:
    """An image with a frame, marks from 0 to ``most`` to the right and from 0 to 1 upwards, and what is ``inside``.

    Args:
        along, up: what the marks tell.
    """
    low = EDGE + SIDE
    marks = "".join(
        f'<text x="{EDGE + SIDE * n / 4:.0f}" y="{low + 18}" text-anchor="middle">{most * n / 4:g}</text>\n'
        f'<text x="{EDGE - 8}" y="{low - SIDE * n / 4 + 4:.0f}" text-anchor="end">{n / 4:g}</text>\n'
        for n in range(5)
    )
    whole, middle = SIDE + 2 * EDGE, EDGE + SIDE // 2
    upright = f'text-anchor="middle" transform="rotate(-90 14 {middle})"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {whole}" width="{whole}" height="{whole}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{whole}" height="{whole}" fill="#fff"/>\n'
        f'<rect x="{EDGE}" y="{EDGE}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>\n'
        f'{inside}{marks}<text x="{middle}" y="{low + 38}" text-anchor="middle">{along}</text>\n'
        f'<text x="14" y="{middle}" {upright}>{up}</text>\n'
        "</svg>\n"
    )
