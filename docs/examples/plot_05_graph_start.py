"""
A graph start finds another valley
==================================

A solve lowers the energy of a curve from where it starts. From the straight line it ends in the
valley that the line lies in. A :class:`~geolatent.LatentGraph` starts from the shortest path on a
graph of codes instead, and of the two results the shorter is kept.
"""

# %%
# A hill before a wall. The straight line leads over the hill, and the curve that comes from it is
# held on its top by the wall behind; the way around the foot is shorter. And pairs of digits, of
# which most have one valley only.

import matplotlib.pyplot as plt
import torch

import geolatent as gl


def hill(z):
    height = 2.5 * torch.exp(-((z - torch.tensor([0.0, 0.25])).square().sum(1, keepdim=True)))
    wall = 3.0 * torch.sigmoid(8 * (z[:, 1:] - 0.9)) * torch.exp(-z[:, :1].square())
    return torch.cat([z, height + wall], dim=1)


surface = gl.PullbackMetric(hill)
start, end = torch.tensor([-2.0, 0.4]), torch.tensor([2.0, 0.4])
low, high = torch.tensor([-2.5, -2.0]), torch.tensor([2.5, 2.5])
lattice = gl.LatentGraph.lattice(surface, low, high, resolution=64)
cases = {
    "a hill": (surface, start[None], end[None], lattice, low, high),
}

vae = gl.models.digits_vae()
images, _ = gl.data.digits(split="test")
with torch.no_grad():
    codes, _ = vae.encode(images)
metric = gl.GaussianPullbackMetric(vae.decode)
first, last = codes[:40], codes[40:80]
low, high = codes.amin(0) - 0.5, codes.amax(0) + 0.5
lattice = gl.LatentGraph.lattice(metric, low, high, resolution=96)

from_lines = gl.solve_geodesic(metric, first, last)
from_graph = gl.solve_geodesic(metric, first, last, initial=lattice)
gain = 1 - from_graph.length / from_lines.length
best = gain.argsort(descending=True)[:4]
print(f"{int((gain > 1e-3).sum())} of 40 pairs of digits shorter, by up to {gain.max():.1%}")
cases["digits"] = (metric, first[best], last[best], lattice, low, high)

# %%

figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
t = torch.linspace(0, 1, 101)
for axes, (name, (each, a, b, graph, low, high)) in zip(panels, cases.items(), strict=True):
    x, y = torch.linspace(low[0], high[0], 120), torch.linspace(low[1], high[1], 120)
    factor = gl.magnification_factor(each, torch.cartesian_prod(x, y)).reshape(120, 120).T
    axes.pcolormesh(x, y, factor.log(), cmap="Greys", rasterized=True)
    lines = gl.solve_geodesic(each, a, b)
    paths = gl.solve_geodesic(each, a, b, initial=graph)
    for pair in range(len(a)):
        first = pair == 0
        style = {"color": "#0072b2", "ls": "--", "lw": 2}
        axes.plot(*lines.curve(t)[pair].T, **style, label="from the line" if first else None)
        axes.plot(
            *paths.curve(t)[pair].T,
            color="#d55e00",
            lw=2,
            label="from the graph" if first else None,
        )
        axes.scatter(*torch.stack([a[pair], b[pair]]).T, color="black", s=22, zorder=4)
    shorter = (1 - paths.length / lines.length).max()
    axes.set(title=f"{name}: up to {shorter:.1%} shorter", xlabel="$z_1$", ylabel="$z_2$")
    axes.legend(loc="lower left")
plt.show()
