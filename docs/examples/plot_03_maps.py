r"""
Magnification factor and condition number
=========================================

Two numbers of the metric at every code. The magnification factor :math:`\sqrt{\det G}` says by how
much the decoder stretches areas; the condition number, the ratio of the largest eigenvalue of
:math:`G` to the smallest, how much more it stretches one direction than another. Where either is
far from constant, straight lines and Euclidean distances mislead.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm

import geolatent as gl

vae = gl.models.digits_vae()
images, _ = gl.data.digits(split="train")
with torch.no_grad():
    codes, _ = vae.encode(images)

# %%
# Once for the mean alone, once for mean and standard deviation, which grows away from the codes.

metrics = {
    "mean": gl.PullbackMetric(vae.decode_mean),
    "mean and standard deviation": gl.GaussianPullbackMetric(vae.decode),
}
low, high = codes.amin(0) - 1.0, codes.amax(0) + 1.0
n = 140
x, y = torch.linspace(low[0], high[0], n), torch.linspace(low[1], high[1], n)
grid = torch.cartesian_prod(x, y)
quantities = {
    r"magnification factor $\sqrt{\det G}$": (gl.magnification_factor, "cividis"),
    "condition number": (gl.condition_number, "magma"),
}

figure, panels = plt.subplots(
    2, 2, figsize=(9, 7.4), sharex=True, sharey=True, layout="constrained"
)
for row, (label, (function, colours)) in zip(panels, quantities.items(), strict=True):
    maps = [function(metric, grid).reshape(n, n).T for metric in metrics.values()]
    finite = torch.cat([each[each.isfinite()] for each in maps])
    scale = LogNorm(*finite.quantile(torch.tensor([0.01, 0.99])).tolist())
    for axes, name, values in zip(row, metrics, maps, strict=True):
        image = axes.pcolormesh(x, y, values, norm=scale, cmap=colours, rasterized=True)
        axes.scatter(*codes.T, s=1.5, color="white", alpha=0.5, linewidths=0)
        axes.set_title(name, fontsize=10)
    figure.colorbar(image, ax=row, label=label, extend="both")
for axes in panels[-1]:
    axes.set_xlabel("$z_1$")
for axes in panels[:, 0]:
    axes.set_ylabel("$z_2$")
plt.show()
