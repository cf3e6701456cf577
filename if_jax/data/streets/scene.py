"""A street scene put together: weather, camera, backdrop, and all things from far to near."""

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from if_jax.data.streets import backdrop, layout
from if_jax.data.streets.drawing import SUPERSAMPLING, Camera, Light, Painter
from if_jax.data.streets.shapes import choose


class Weather(NamedTuple):
  zenith: tuple[int, int, int]  # RGB of the sky
  horizon: tuple[int, int, int]
  sun: tuple[float, float, float]  # light in R, G, B; 1 leaves a colour as it is
  ambient: tuple[float, float, float]
  visibility: tuple[float, float]  # metres
  clouds: tuple[float, float]
  lamps: bool = False


WEATHERS = {
  'noon': Weather((64, 116, 186), (190, 208, 226), (0.8, 0.76, 0.68), (0.56, 0.6, 0.66),
                  (250, 500), (0.1, 0.55)),
  'overcast': Weather((150, 158, 168), (210, 214, 218), (0.16, 0.16, 0.15), (0.86, 0.88, 0.9),
                      (150, 300), (0.4, 0.9)),
  'evening': Weather((84, 104, 150), (246, 200, 146), (0.82, 0.6, 0.4), (0.52, 0.5, 0.55),
                     (160, 300), (0.1, 0.5)),
  'mist': Weather((186, 190, 194), (208, 211, 213), (0.08, 0.08, 0.08), (0.86, 0.87, 0.88),
                  (45, 90), (0.0, 0.3)),
  'dusk': Weather((40, 50, 92), (196, 132, 122), (0.08, 0.06, 0.06), (0.46, 0.46, 0.56),
                  (150, 300), (0.2, 0.6), lamps=True),
}  # fmt: skip
WEATHER_ODDS = {'noon': 6, 'overcast': 4, 'evening': 3, 'mist': 1.5, 'dusk': 1.5}
BONNET_SHARE = 0.35


def draw(rng: Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Draws one street scene.

  Args:
    rng: decides all that varies; the size does not, at the same aspect it only samples the scene.
    size: (height, width) in pixels.

  Returns:
    image: uint8 [H, W, 3], RGB.
    train_ids: uint8 [H, W], the 19 Cityscapes train ids, and 255 where nothing counts.
  """
  weather, street = WEATHERS[choose(rng, WEATHER_ODDS)], layout.plan(rng)
  painter = Painter(_camera(rng, size), _light(rng, weather), size)
  backdrop.draw_sky(painter, rng, weather.zenith, weather.horizon, rng.uniform(*weather.clouds))
  backdrop.draw_skyline(painter, rng, street.setting.skyline)
  backdrop.draw_ground(painter, rng, street)
  for thing in sorted(layout.things(rng, street), key=_nearness):
    if painter.camera.sees(thing.x, thing.z):
      thing.draw(painter, rng, thing.x, thing.z, *thing.args)
  if rng.random() < BONNET_SHARE:
    backdrop.draw_bonnet(painter, rng)
  return painter.finish(rng)


def _nearness(thing: layout.Thing) -> float:
  return -(thing.z if thing.distance is None else thing.distance)


def _camera(rng: Generator, size: tuple[int, int]) -> Camera:
  height, width = (SUPERSAMPLING * side for side in size)
  return Camera(
    height=rng.uniform(1.2, 2.1),
    # In an image twice as wide as high this is a view of 57 to 73 degrees.
    focal=rng.uniform(0.95, 1.3) * math.sqrt(height * width),
    centre=(width * rng.uniform(0.42, 0.58), height * rng.uniform(0.38, 0.52)),
    half_width=width / 2,
    roll=rng.normal(0, 0.012),
    bend=rng.integers(2) * rng.uniform(-1, 1) / 320,
  )


def _light(rng: Generator, weather: Weather) -> Light:
  azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.1)
  across = math.cos(elevation)
  return Light(
    to_sun=np.array([across * math.sin(azimuth), math.sin(elevation), across * math.cos(azimuth)]),
    sun=np.array(weather.sun),
    ambient=np.array(weather.ambient),
    haze=np.array(weather.horizon, float),
    visibility=rng.uniform(*weather.visibility),
    lamps=weather.lamps,
  )
