"""Paints a scene: textured ground, lit shapes with soft shadows, one light over all.

Only the picture is smoothed, by about a pixel at edges; the label map stays crisp. Textures are made once a process.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from builders.world import COLORS, FIRST_STUFF, STUFF, VERSION, Scene, Sprite
from dataengine.keyed import keyed

TILE = 768  # side of a ground texture, px; larger than every canvas
MATERIAL = 384  # side of a material, px
SHADOW = 0.42  # how much light a shadow takes


def paint(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene.

    Args:
        rng: chooses textures and light.
    Returns:
        (H, W, 3) uint8 of blue, green, red (OpenCV's order).
    """
    height, width = scene.ground.shape
    picture = np.empty((height, width, 3), dtype=np.uint8)
    for index, kind in enumerate(STUFF):
        region = (scene.ground == FIRST_STUFF + index).view(np.uint8)
        if cv2.countNonZero(region):
            tiles = _textures(kind.name)
            tile = tiles[rng.integers(len(tiles))]
            y = rng.integers(24 if kind.name == "sky" else TILE - height)
            x = rng.integers(TILE - width)
            cv2.copyTo(tile[y : y + height, x : x + width], region, picture)
    for sprite in scene.sprites:
        _paint_sprite(picture, sprite)
    edges = cv2.morphologyEx(scene.labels, cv2.MORPH_GRADIENT, np.ones((2, 2), dtype=np.uint8))
    cv2.copyTo(cv2.blur(picture, (3, 3)), edges, picture)
    return cv2.multiply(picture, _light(height, width, int(rng.integers(8))), scale=1 / 200)


# --- shapes ----------------------------------------------------------------------------------------------------------


def _paint_sprite(picture: np.ndarray, sprite: Sprite) -> None:
    """Shadow, then the lit shape over it, cut at the frame."""
    crop = sprite.crop
    h, w = crop.mask.shape
    side = float(np.sqrt(h * w))
    far = 2 + round(0.05 * side)  # the light comes from the top left
    alpha = crop.mask.view(np.uint8) * np.uint8(255)
    dark = cv2.copyMakeBorder(alpha, far, far, far, far, cv2.BORDER_CONSTANT)
    light = cv2.convertScaleAbs(cv2.blur(dark, (2 * far + 1, 2 * far + 1)), alpha=-SHADOW, beta=255)
    view, light = _overlap(picture, light, crop.x0 - far // 2 + 1, crop.y0 - far // 2 + 1)
    if view.size:
        cv2.multiply(view, cv2.cvtColor(light, cv2.COLOR_GRAY2BGR), dst=view, scale=1 / 255)
    view, mask = _overlap(picture, alpha, crop.x0, crop.y0)
    _, shade = _overlap(picture, _shade(sprite, alpha, side), crop.x0, crop.y0)
    color = cv2.LUT(cv2.cvtColor(shade, cv2.COLOR_GRAY2BGR), _tones(sprite.color))
    cv2.copyTo(color, mask, view)


def _overlap(picture: np.ndarray, patch: np.ndarray, x0: int, y0: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts of a picture and of a patch at (x0, y0) that lie on each other."""
    height, width = picture.shape[:2]
    h, w = patch.shape[:2]
    left, top, right, bottom = max(0, x0), max(0, y0), min(width, x0 + w), min(height, y0 + h)
    right, bottom = max(left, right), max(top, bottom)
    return picture[top:bottom, left:right], patch[top - y0 : bottom - y0, left - x0 : right - x0]


def _shade(sprite: Sprite, alpha: np.ndarray, side: float) -> np.ndarray:
    """(h, w) uint8 brightness, 150 is the plain color: light from the top left, a material, a rounded rim."""
    h, w = alpha.shape
    shade = cv2.resize(_ball(), (w, h), interpolation=cv2.INTER_LINEAR)
    material = _materials()[sprite.material % len(_materials())]
    y, x = sprite.offset[0] % (MATERIAL - 255), sprite.offset[1] % (MATERIAL - 255)
    if h > MATERIAL - y or w > MATERIAL - x:
        grain = cv2.resize(material, (w, h), interpolation=cv2.INTER_LINEAR)
    else:
        grain = material[y : y + h, x : x + w]
    shade = cv2.multiply(shade, grain, scale=1 / 128)
    rim = 2 * max(1, round(0.045 * side)) + 1
    depth = cv2.blur(alpha, (rim, rim), borderType=cv2.BORDER_CONSTANT)
    return cv2.multiply(shade, cv2.convertScaleAbs(depth, alpha=0.42, beta=148), scale=1 / 255)


@cache
def _ball() -> np.ndarray:
    """(128, 128) uint8: how bright a shape's box is, a soft highlight at the top left."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    glow = np.exp(-((x + 0.4) ** 2 + (y + 0.45) ** 2) / 0.35)
    return np.clip(150 - 26 * (x + y) / 2 + 46 * glow, 0, 255).astype(np.uint8)


@cache
def _tones(color: str) -> np.ndarray:
    """(1, 256, 3) uint8: brightness to color; darker below 150, towards white above."""
    base = np.array(COLORS[color][::-1], dtype=float)
    value = np.arange(256)[:, None]
    dark = base * (value / 150)
    bright = base + (255 - base) * (value - 150) / 105 * 0.6
    tones = np.where(value <= 150, dark, bright)
    return np.clip(np.round(tones), 0, 255).astype(np.uint8)[None]


@cache
def _materials() -> tuple[np.ndarray, ...]:
    """(MATERIAL, MATERIAL) uint8 around 128: plain, brushed, mottled, grained, ribbed."""
    rng = keyed(0, "world", "materials", VERSION)
    x = np.arange(MATERIAL, dtype=np.float32)[None, :] + np.arange(MATERIAL, dtype=np.float32)[:, None]
    fields = (
        0.02 * _noise(rng, MATERIAL, 96, 96),
        0.10 * _noise(rng, MATERIAL, 4, 128) + 0.03 * _noise(rng, MATERIAL, 128, 128),
        0.16 * _noise(rng, MATERIAL, 18, 18) + 0.05 * _noise(rng, MATERIAL, 64, 64),
        0.075 * _noise(rng, MATERIAL, 170, 170),
        0.10 * np.tanh(3 * np.sin(x * (2 * np.pi / 17))) + 0.02 * _noise(rng, MATERIAL, 96, 96),
    )
    return tuple(np.clip(128 * (1 + field), 0, 255).astype(np.uint8) for field in fields)


# --- ground ----------------------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, size: int, cells_x: int, cells_y: int) -> np.ndarray:
    """(size, size) float32 of smooth noise with mean 0 and deviation 1; more cells are finer."""
    grid = rng.standard_normal((cells_y, cells_x), dtype=np.float32)
    field = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()


def _clouds(rng: np.random.Generator, cells_x: int, cells_y: int, octaves: int) -> np.ndarray:
    """Noise with octaves, each half as strong and twice as fine."""
    fields = [_noise(rng, TILE, cells_x << k, cells_y << k) * 0.5**k for k in range(octaves)]
    field = np.sum(fields, axis=0, dtype=np.float32)
    return field / field.std()


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], share: np.ndarray) -> np.ndarray:
    """RGB of two colors mixed, as (TILE, TILE, 3) float32 of blue, green, red."""
    share = np.clip(share, 0, 1)[..., None]
    a, b = (np.array(color[::-1], dtype=np.float32) for color in (low, high))
    return a + (b - a) * share


@cache
def _textures(name: str) -> tuple[np.ndarray, ...]:
    """Ground textures of a stuff kind: (TILE, TILE, 3) uint8 each."""
    rng = keyed(0, "world", "texture", name, VERSION)
    return tuple(np.clip(_texture(rng, name, tone), 0, 255).astype(np.uint8) for tone in (-1.0, 1.0))


def _texture(rng: np.random.Generator, name: str, tone: float) -> np.ndarray:
    fine = _noise(rng, TILE, 384, 384)
    rows = np.linspace(0, 1, TILE, dtype=np.float32)[:, None]
    if name == "sky":
        field = np.clip(_clouds(rng, 3, 7, 5) * 0.55 + 0.15 * tone - 0.2, 0, 1)
        air = _mix((92, 150, 214), (206, 226, 240), np.broadcast_to(rows * 1.9, (TILE, TILE)))
        return air + (np.array((250, 248, 246), dtype=np.float32) - air) * field[..., None] * 0.85
    if name == "hills":
        field = _clouds(rng, 10, 5, 6)
        return _mix((84, 92, 92), (150, 152, 138), 0.5 + 0.22 * field + 0.04 * fine) + 6 * tone
    if name == "grass":
        blades = _noise(rng, TILE, 330, 90)
        field = 0.45 + 0.13 * blades + 0.12 * _clouds(rng, 5, 5, 3) + 0.04 * fine
        return _mix((70, 112, 40), (150, 182, 78), field + 0.05 * tone)
    if name == "sand":
        ripple = _noise(rng, TILE, 14, 90)
        field = 0.5 + 0.12 * ripple + 0.1 * _clouds(rng, 4, 6, 3) + 0.07 * fine
        return _mix((186, 156, 106), (232, 210, 164), field + 0.06 * tone)
    if name == "water":
        waves = _noise(rng, TILE, 26, 150) + 0.7 * _noise(rng, TILE, 60, 260)
        water = _mix((26, 82, 128), (84, 152, 186), 0.42 + 0.12 * waves + 0.12 * _clouds(rng, 3, 8, 3) + 0.05 * tone)
        return water + np.clip(waves - 2.1, 0, 1)[..., None] * 110
    assert name == "road", name
    field = 0.45 + 0.11 * fine + 0.1 * _clouds(rng, 6, 6, 3)
    return _mix((74, 74, 78), (124, 122, 120), field + 0.06 * tone)


@cache
def _light(height: int, width: int, number: int) -> np.ndarray:
    """(height, width, 3) uint8 to multiply a picture with, 200 is neutral: a slope of light and darker corners."""
    rng = keyed(0, "world", "light", number, VERSION)
    y, x = np.mgrid[-1:1:60j, -1:1:60j]
    slope = 0.06 * (x * rng.uniform(-1, 1) - y * rng.uniform(0, 1))
    corners = -0.10 * (x * x + y * y) / 2
    warmth = rng.uniform(-0.03, 0.03)
    gains = [(1.03 + slope + corners) * (1 + warmth * channel) for channel in (-1, 0, 1)]
    smooth = cv2.resize(np.stack(gains, axis=-1).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.convertScaleAbs(smooth, alpha=200)
