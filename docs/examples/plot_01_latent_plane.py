r"""
Geodesics in the latent plane
=============================

The embedded model decodes a plane to images of digits, with a mean and a standard deviation. Where
the magnification factor :math:`\sqrt{\det G}` is large, a small step of the code changes the image
much. Geodesics go around such places.
"""

# %%
# The metric is the expected pull-back metric of the Gaussian decoder. A lattice over the plane
# gives starting curves, for there may be several valleys.

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm

import geolatent as gl

vae = gl.models.digits_vae()
images, labels = gl.data.digits(split="test")
with torch.no_grad():
    codes, _ = vae.encode(images)
metric = gl.GaussianPullbackMetric(vae.decode)

low, high = codes.amin(0) - 0.5, codes.amax(0) + 0.5
lattice = gl.LatentGraph.lattice(metric, low, high, resolution=96)
start, end = codes[0:16:2], codes[1:16:2]
solution = gl.solve_geodesic(metric, start, end, initial=lattice)
print(solution)

# %%
# The magnification factor on a grid, in the background.

n = 160
x, y = torch.linspace(low[0], high[0], n), torch.linspace(low[1], high[1], n)
grid = torch.cartesian_prod(x, y)
factor = gl.magnification_factor(metric, grid).reshape(n, n).T

figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
image = axes.pcolormesh(x, y, factor, norm=LogNorm(), cmap="cividis", rasterized=True)
figure.colorbar(image, label=r"magnification factor $\sqrt{\det G}$")
axes.scatter(*codes.T, c=labels, cmap="tab10", s=7, linewidths=0)

t = torch.linspace(0, 1, 101)
for pair, curve in enumerate(solution.curve(t)):
    ends = torch.stack([start[pair], end[pair]])
    first = pair == 0
    axes.plot(*ends.T, "w--", lw=1.2, label="straight line" if first else None)
    axes.plot(*curve.T, color="#ff4d6d", lw=2.2, label="geodesic" if first else None)
    axes.scatter(*ends.T, s=34, color="white", edgecolors="black", zorder=5)
axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
axes.legend(facecolor="0.35", labelcolor="white", loc="upper right")
plt.show()
