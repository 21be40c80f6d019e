"""A real climate field: sea surface temperature of the Pacific in fifty winters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geolatent.checks import requirement

# kelvin that become 1
SCALE = 5.0
# sides of the outermost cells of the file of eofs: degrees north, degrees east
GRID = (-25.0, 65.0, 115.0, 265.0)
CLASSES = ("La Niña", "neutral", "El Niño")
# mean anomaly of Niño 3.4, in kelvin, beyond which a winter is of one of these
_THRESHOLD = 0.5
# degrees north and east, of the centres of cells
_NINO34 = (-5.0, 5.0), (190.0, 240.0)
_BEGINNING = np.datetime64("1800-01-01")


@dataclass(frozen=True)
class Winters:
    """Anomalies of sea surface temperature, means of November to March.

    Attributes
    ----------
    anomalies
        Kelvin, (n, latitudes, longitudes); NaN over land.
    years
        The years of the Januaries, (n,).
    latitudes, longitudes
        Degrees north, from the south, and degrees east.
    """

    anomalies: NDArray[np.float64]
    years: NDArray[np.int64]
    latitudes: NDArray[np.float64]
    longitudes: NDArray[np.float64]

    @property
    def nino34(self) -> NDArray[np.float64]:
        """Mean anomaly of 5 S to 5 N, 170 W to 120 W, by area, (n,), in kelvin."""
        (south, north), (west, east) = _NINO34
        rows = (self.latitudes >= south) & (self.latitudes <= north)
        columns = (self.longitudes >= west) & (self.longitudes <= east)
        box = self.anomalies[:, rows][:, :, columns]
        weights = np.broadcast_to(np.cos(np.deg2rad(self.latitudes[rows]))[:, None], box.shape[1:])
        return np.asarray((box * weights).sum((1, 2)) / weights.sum())


def sst_file(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the file of a path, or by default the one that comes with the library eofs.

    Raises
    ------
    FileNotFoundError
        If it is not there; the message says what to do.
    """
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(requirement("path", "an existing file", path))
        return Path(path)
    found = find_spec("eofs")
    if found is not None and found.origin is not None:
        inside = Path(found.origin).parent / "examples" / "example_data" / "sst_ndjfm_anom.nc"
        if inside.is_file():
            return inside
    required = "a NetCDF file of sea surface temperatures, or null where eofs is installed"
    raise FileNotFoundError(f"{requirement('path', required, None)} Run: pip install eofs")


def winters(path: str | os.PathLike[str] | None = None) -> Winters:
    """Read anomalies of sea surface temperature.

    Parameters
    ----------
    path
        A NetCDF 3 file with ``sst`` (time, latitude, longitude), in kelvin, and these coordinates,
        time in days since 1800-1-1; by default that of eofs: the Pacific from 22.5 S to 62.5 N and
        117.5 E to 97.5 W at 5 degrees, 1962/63 to 2011/12.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or lacks one of these.

    References
    ----------
    A. Dawson, "eofs: A Library for EOF Analysis of Meteorological, Oceanographic, and Climate
    Data", 2016, doi:10.5334/jors.122.
    """
    from scipy.io import netcdf_file

    file = sst_file(path)
    names = ("sst", "time", "latitude", "longitude")
    try:
        with netcdf_file(file, mmap=False) as content:
            arrays: dict[str, Any] = {name: content.variables[name] for name in names}
            missing = getattr(arrays["sst"], "missing_value", np.nan)
            sst, time, latitudes, longitudes = (
                np.array(arrays[name].data, dtype=np.float64) for name in names
            )
    except (KeyError, TypeError, ValueError, OSError) as error:
        required = f"a readable NetCDF 3 file with {', '.join(names)}"
        raise ValueError(f"{requirement('path', required, file)} {error}") from error
    if sst.shape != (len(time), len(latitudes), len(longitudes)) or sst.size == 0:
        required = "a file whose `sst` is (time, latitude, longitude)"
        raise ValueError(requirement("path", required, f"{file} with `sst` {sst.shape}"))
    # fill values are far from all temperatures, on either side
    sst[np.abs(sst) >= 0.1 * abs(float(np.asarray(missing).flat[0]))] = np.nan
    # the middle of a winter is in January
    dates = _BEGINNING + time.astype("timedelta64[D]")
    years = dates.astype("datetime64[Y]").astype(np.int64) + 1970
    return Winters(sst, years, latitudes, longitudes)


def fields(path: str | os.PathLike[str] | None = None) -> tuple[Tensor, Tensor]:
    """Return the winters as images in [-1, 1] (1 is 5 K, land 0), and their classes.

    Returns
    -------
    tuple[Tensor, Tensor]
        (n, 1, latitudes, longitudes), float32, and (n,), int64: 0 La Niña, 1 neutral, 2 El Niño, by
        a mean of Niño 3.4 beyond 0.5 K.
    """
    found = winters(path)
    index = found.nino34
    labels = 1 + (index >= _THRESHOLD).astype(np.int64) - (index <= -_THRESHOLD)
    images = torch.from_numpy(np.nan_to_num(found.anomalies) / SCALE).float()
    return images[:, None], torch.from_numpy(labels)
