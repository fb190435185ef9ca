"""Placeholder pictures: what stands in for every image model, and says so."""

import colorsys
import io
import textwrap

from PIL import Image, ImageDraw, ImageFont

from bedrock.images import ImageRequest

DEFAULT_SIZE = (1024, 1024)
LABEL = "PLACEHOLDER"
LINE_HEIGHT = 1.3  # of a letter's size


def draw(request: ImageRequest, model: str, seed: int) -> bytes:
    """A PNG of the size asked for, with a label and the prompt on it.

    The same request and seed make the same picture; the seed makes its colours.
    """
    width, height = request.width or DEFAULT_SIZE[0], request.height or DEFAULT_SIZE[1]
    hue = seed * 0.618034 % 1  # of neighbouring seeds, far apart
    picture = Image.new("RGB", (width, height), _colour(hue, 0.35, 0.3))
    canvas = ImageDraw.Draw(picture)
    letter = max(12, min(width, height) // 24)
    margin = letter
    canvas.rectangle(
        (margin // 2, margin // 2, width - margin // 2, height - margin // 2),
        outline=_colour(hue, 0.4, 0.8),
        width=max(1, letter // 8),
    )
    canvas.text(
        (margin, margin), LABEL, font=ImageFont.load_default(2 * letter), fill=_colour(hue, 0.3, 1)
    )
    font = ImageFont.load_default(letter)
    columns = max(1, int((width - 2 * margin) / font.getlength("n")))
    rows = max(1, int((height - margin - 4 * letter) / (letter * LINE_HEIGHT)))
    words = _lines(f"in place of {model}, seed {seed}", columns)
    words += ["", *_lines(request.prompt, columns)]
    if request.negative_prompt:
        words += ["", *_lines(f"without: {request.negative_prompt}", columns)]
    if len(words) > rows:
        words = [*words[: rows - 1], "…"]
    for row, line in enumerate(words):
        top = margin + 3 * letter + int(row * letter * LINE_HEIGHT)
        canvas.text((margin, top), line, font=font, fill="white")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _lines(text: str, columns: int) -> list[str]:
    # Half of a surrogate pair, which JSON can carry, is no letter that can be drawn.
    return textwrap.wrap(text.encode(errors="replace").decode(), columns)


def _colour(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
