r"""
Normalising flows
=================

A flow decodes every code to a point of its own and back, without loss. Lengths in its output are
those of straight lines there: a geodesic of the pull-back metric is what the flow makes of a
straight line. The density, which a flow knows, makes a metric that is not flat: with
:math:`g = (p / p_0)^{-1}` lengths are long where there is no data.
"""

# %%
# NICE (extra ``flows``) learns two moons in the plane, by maximum likelihood.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons

import geolatent as gl

torch.manual_seed(0)
points, moon = make_moons(1_000, noise=0.1, random_state=0)
data = torch.from_numpy(points).float().reshape(-1, 1, 1, 2)  # images of two pixels

flow = gl.models.NICE((1, 1, 2), couplings=6, hidden=(32, 32), levels=None)
flow.initialise(data)
adam = torch.optim.Adam(flow.parameters(), lr=5e-3)
for _ in range(100):
    adam.zero_grad()
    loss = -flow.log_prob(data).mean()
    loss.backward()
    adam.step()
flow.double().eval().requires_grad_(False)
data = data.double()
print(f"log p of a point: {-loss.item():.2f} nats")

# %%
# Geodesics between points of both moons, under either metric. The density metric has several
# valleys: curves start from shortest paths on a graph of the codes.


def log_density(z):
    return flow.log_prob(flow.decode(z))


codes = flow.encode(data)
flat = gl.PullbackMetric(flow.decode)
reference = float(log_density(codes).median())
dense = gl.ConformalMetric.from_log_density(flat, log_density, reference=reference)

ends = torch.tensor([[-1.0, 0.1], [0.0, 0.35], [-0.7, 0.7]], dtype=torch.float64)
others = torch.tensor([[1.0, 0.1], [2.0, 0.3], [1.7, -0.3]], dtype=torch.float64)
start, end = (flow.encode(each.reshape(-1, 1, 1, 2)) for each in (ends, others))
graph = gl.LatentGraph.from_codes(dense, codes)
solutions = {
    "geodesic": gl.solve_geodesic(flat, start, end),
    "geodesic of the density": gl.solve_geodesic(dense, start, end, initial=graph),
}
chords = (others - ends).norm(dim=1)
excess = solutions["geodesic"].length / chords - 1.0
print(solutions["geodesic"])
print("longer than straight in the output by", [f"{100 * each:.3f} %" for each in excess])

# %%
# In the codes the plain geodesics are bent, in the output they are straight.

side = torch.linspace(0, 1, 201, dtype=torch.float64)
grid = torch.cartesian_prod(-1.6 + 4.2 * side, -1.1 + 2.7 * side)
log_p = flow.log_prob(grid.reshape(-1, 1, 1, 2)).reshape(201, 201).T

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
extent = {"origin": "lower", "extent": (-1.6, 2.6, -1.1, 1.6), "aspect": "auto"}
image = right.imshow(log_p.numpy(), vmin=-8, vmax=1, cmap="Greys", **extent)
figure.colorbar(image, label=r"$\log p$ (nats)")
left.scatter(*codes.T, c=moon, cmap="tab10", s=4, alpha=0.4, linewidths=0)
t = torch.linspace(0, 1, 201, dtype=torch.float64)
for (name, solution), colour in zip(solutions.items(), ("#0072b2", "#d55e00"), strict=True):
    for pair, curve in enumerate(solution.curve(t)):
        label = name if pair == 0 else None
        left.plot(*curve.T, color=colour, lw=2, label=label)
        right.plot(*flow.decode(curve).reshape(-1, 2).T, color=colour, lw=2, label=label)
for pair in range(len(start)):
    line = torch.stack([start[pair], end[pair]])
    label = "straight line of codes" if pair == 0 else None
    left.plot(*line.T, "k--", lw=1, label=label)
    along = start[pair] + t[:, None] * (end[pair] - start[pair])
    right.plot(*flow.decode(along).reshape(-1, 2).T, "k--", lw=1, label=label)
left.set(title="codes", xlabel="$z_1$", ylabel="$z_2$")
right.set(title="output", xlabel="$x_1$", ylabel="$x_2$")
right.set(xlim=(-1.6, 2.6), ylim=(-1.1, 1.6))
left.legend(fontsize=9, loc="upper left")
plt.show()
